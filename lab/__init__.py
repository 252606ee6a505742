"""The test lab: Debian hosts with systemd, as containers on this machine. See lab/README.md."""
