# Runs on a host: a Redis and a Sentinel as Debian ships them, under names, ports and a directory of their own.
# Arguments: name, own address, address of the first primary, Redis's port, Sentinel's port.
set -eu
name=$1 address=$2 primary=$3 port=$4 sentinel=$5
place=/var/lib/redis-$name
mkdir -p "$place"
sed -e "s/^bind .*/bind $address/" -e 's/^protected-mode .*/protected-mode no/' -e "s/^port .*/port $port/" -e "s|^dir .*|dir $place|" \
    -e 's/^logfile .*/logfile ""/' -e '/^pidfile/d' /usr/share/openclaw-lab/redis.conf > "$place/redis.conf"
[ "$address" = "$primary" ] || echo "replicaof $primary $port" >> "$place/redis.conf"
sed -e "s/^port .*/port $sentinel/" -e "s|^dir .*|dir $place|" -e 's/^logfile .*/logfile ""/' -e '/^pidfile/d' \
    -e "s/^sentinel monitor .*/sentinel monitor mymaster $primary $port 2/" /usr/share/openclaw-lab/sentinel.conf > "$place/sentinel.conf"
echo "bind $address" >> "$place/sentinel.conf"
chown -R redis:redis "$place"
for kind in redis sentinel; do
    program=redis-server
    [ $kind = redis ] || program=redis-sentinel
    cat > "/usr/lib/systemd/system/$name-$kind.service" <<UNIT
[Service]
Type=notify
ExecStart=/usr/bin/$program $place/$kind.conf --supervised systemd --daemonize no
TimeoutStopSec=0
Restart=always
User=redis
Group=redis
LimitNOFILE=65535
[Install]
WantedBy=multi-user.target
UNIT
done
systemctl daemon-reload
systemctl enable --quiet --now "$name-redis.service" "$name-sentinel.service"
