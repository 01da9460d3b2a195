#!/bin/sh
# Stubs with a network: Prometheus scrapes three of them and dom0, rsyslog has their logs, a flood of packets costs the
# guest nothing, and the network comes back after whatever happens to either end.
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=6
#: device edu,addr=7
#: packages prometheus rsyslog python3 python3-prometheus-client
#: suite trixie
#: cpus 2
#: timeout 900
#: timeout-all 900
. /rig/scenarios/lib.sh
needs_speed
export GUEST_INITRD=/root/measure.initrd
BDF=0000:00:05.0
GATEWAY=10.9.0.1
ROUNDS=${ROUNDS:-300}
check "initrd with the measuring program" guest-initrd $GUEST_INITRD usr/bin/config-latency=/rig/bin/config-latency

# --- dom0's side: a bridge, a collector of logs
MINUTE=${MINUTE:-$([ "$ALL" ] && echo 60 || echo 30)}
check "a bridge" bridge_up xenbr0 $GATEWAY/24
dir=/run/telemetry
check "rsyslog" collect_syslog $dir $GATEWAY

# scrape ADDRESS FILE [MEDIA-TYPE]; bookworm's busybox dies of `wget -T`.
scrape() { timeout 5 wget -q ${3:+--header "Accept: $3"} -O "$2" "http://$1:9743/metrics"; }
# value FILE NAME: of a metric that has one sample.
value() { sed -n "s/^$2{[^}]*} //p" "$1"; }

# --- three guests with such stubs
guest_config web
check "a Linux guest whose stub has a network" bulkhead run /root/web.cfg --device $BDF \
    --telemetry "bridge=xenbr0,address=10.9.0.11/24,syslog=$GATEWAY:514"
stub=web-bulkhead
for number in 2 3; do
    bare_guest "bare$number" "mode=idle"
    check "a further guest, with a stub of that kind" bulkhead run "/root/bare$number.cfg" --device "0000:00:0$((number + 4)).0" \
        --telemetry "bridge=xenbr0,address=10.9.0.1$number/24,syslog=$GATEWAY:514"
done
check "the guest's network is up" network_up web
equal "memory of a stub with a network, in MiB" 6 "$(xl list $stub | awk 'NR == 2 { print $3 }')"
mac=$(xl network-list $stub | awk 'NR == 2 { print $3 }')

# --- both formats, by foreign parsers
bulkhead metrics >$dir/dom0.om
bulkhead metrics --format prometheus >$dir/dom0.prom
check "a scrape" scrape 10.9.0.11 $dir/stub.om
check "a scrape in the older format" scrape 10.9.0.11 $dir/stub.prom text/plain
for from in dom0 stub; do
    in-packages promtool check metrics <$dir/$from.prom >/tmp/check 2>&1
    equal "$from: promtool check metrics" "0 " "$? $(cat /tmp/check)"
    check "$from: Python's parser of OpenMetrics" in-packages python3 -c "
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
families = list(parse(open('$dir/$from.om').read()))
names = [family.name for family in families]
assert len(names) == len(set(names)) > 10, names
assert all(family.documentation for family in families)
"
    series=$(grep -c 'stub="web-bulkhead"' $dir/$from.om)
    figure "series-$from" "$series"
    check "$from: $series series of one stub, at most 60" [ "$series" -ge 30 -a "$series" -le 60 ]
done
# dom0 asks first and last: reads that the guest makes in between are in one of the two.
of_reads() { sed -n 's/^bulkhead_stub_requests_total{.*stub="web-bulkhead",op="conf_read"} //p' "$1"; }
bulkhead metrics >$dir/first
scrape 10.9.0.11 $dir/stub.om
bulkhead metrics >$dir/last
check "the guest's reads are the same by dom0 and by the stub: $(of_reads $dir/stub.om)" \
    [ "$(of_reads $dir/stub.om)" -ge "$(of_reads $dir/first)" -a "$(of_reads $dir/stub.om)" -le "$(of_reads $dir/last)" -a "$(of_reads $dir/stub.om)" -gt 100 ]

# --- a real Prometheus; the control is a file with the same text, which dom0 serves to itself
check "bulkhead metrics --listen" sh -c 'bulkhead metrics --listen 127.0.0.1:9742 >/run/telemetry/listen.log 2>&1 &
    for i in 1 2 3 4 5 6 7 8 9 10; do wget -q -O /dev/null http://127.0.0.1:9742/metrics && exit 0; usleep 300000; done; exit 1'
mkdir -p $dir/control $dir/data
cp $dir/stub.prom $dir/control/metrics
busybox httpd -p 127.0.0.1:9741 -h $dir/control
cat >$dir/prometheus.yml <<END
global: { scrape_interval: 5s, scrape_timeout: 4s }
scrape_configs:
  - job_name: bulkhead
    static_configs: [ { targets: [ "127.0.0.1:9742", "10.9.0.11:9743", "10.9.0.12:9743", "10.9.0.13:9743" ] } ]
  - job_name: control
    fallback_scrape_protocol: PrometheusText0.0.4
    static_configs: [ { targets: [ "127.0.0.1:9741" ] } ]
END
# Only newer versions of Prometheus know that setting, and need it: the file has no media type.
in-packages promtool check config $dir/prometheus.yml >/dev/null 2>&1 || sed -i /fallback/d $dir/prometheus.yml
in-packages prometheus --config.file=$dir/prometheus.yml --storage.tsdb.path=$dir/data --web.listen-address=127.0.0.1:9090 >$dir/prometheus.log 2>&1 &
ask() { in-packages promtool query instant http://127.0.0.1:9090 "$1"; }
ready() { wget -q -O /dev/null http://127.0.0.1:9090/-/ready; }
# stub_time: processor time of the three stubs in tenths of a second.
stub_time() { xl vcpu-list | awk '/-bulkhead / { sum += $6 * 10 } END { print int(sum + 0.5) }'; }
within 120 "Prometheus is ready" ready
before=$(stub_time)
sleep $((MINUTE + 6))
spent=$(($(stub_time) - before))
ask "count_over_time(up[${MINUTE}s])" >$dir/scrapes
ask "min_over_time(up[${MINUTE}s])" >$dir/up
ask "quantile_over_time(0.5, scrape_duration_seconds[${MINUTE}s])" >$dir/typical
ask "max_over_time(scrape_duration_seconds[${MINUTE}s])" >$dir/longest
for process in $(processes prometheus); do kill "$process"; done
# of FILE PATTERN: the highest value among the targets that match, in ms; counts as they are.
of() { grep -E "$2" $dir/"$1" | sed 's/.*=> \([0-9.e-]*\).*/\1/' | sort -g | tail -n 1 | awk '{ print int($1 * 1000 + 0.5) }'; }
for file in scrapes up typical longest; do sed "s/^/  $file: /; s/ @.*//" $dir/$file; done
check "four targets, a scrape of each in five seconds" \
    [ "$(grep -v control $dir/scrapes | sed 's/.*=> \([0-9]*\).*/\1/' | awk -v least=$((MINUTE / 5 - 1)) '$1 >= least' | wc -l)" = 4 ]
equal "targets with a failed scrape" 0 "$(sed 's/.*=> \([0-9.]*\).*/\1/' $dir/up | awk '$1 < 1' | wc -l)"
control=$(of typical control) typical=$(of typical 9743)
figure scrape-p50-control "$control" ms
figure scrape-p50 "$typical" ms
figure scrape-max-control "$(of longest control)" ms
figure scrape-max "$(of longest 9743)" ms
figure scrape-processor-time $((spent * 100 / (3 * (MINUTE + 6) / 5))) ms
check "a scrape typically takes less than 50 ms longer than that of the control" [ $((typical - control)) -lt 50 ]

# --- what the network costs an idle stub
scrape 10.9.0.12 $dir/first
scrape 10.9.0.12 $dir/second
sleep $MINUTE
scrape 10.9.0.12 $dir/third
wakeups() { value $dir/"$1" bulkhead_stub_wakeups_total; }
scraping=$(($(wakeups second) - $(wakeups first)))
idle=$(($(wakeups third) - $(wakeups second) - scraping))
figure idle-wakeups $idle "in $MINUTE s"
check "an idle stub wakes up once a second at most: $idle in $MINUTE s, and $scraping for a scrape" [ $idle -le "$MINUTE" ]

# --- a flood of packets
# reads NAME: leaves in $p50 how long the guest's reads of a register take, in microseconds.
reads() {
    in_guest web "config-latency 0000:00:00.0 $ROUNDS" >$dir/"$1".json || { cat $dir/"$1".json; failure "config-latency: $1"; }
    p50=$(jq .read4.p50 $dir/"$1".json)
}
flood() { # ADDRESS SECONDS
    in-packages python3 -c "
import socket, time
target, packet = ('$1', 9), b'x' * 64
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
end, count = time.monotonic() + $2, 0
while time.monotonic() < end:
    try:
        sender.sendto(packet, target)
        count += 1
    except OSError:
        pass
print(count)
"
}
# flooded WHOSE ADDRESS: adds to $dir/WHOSE what the guest's reads take while packets go to that address.
flooded() {
    flood "$2" 14 >>$dir/count.of."$1" &
    sleep 2
    reads "$1"
    echo "$p50" >>$dir/of."$1"
    wait $!
}
median() { sort -n $dir/of."$1" | sed -n 2p; }
reads quiet
quiet=$p50
scrape 10.9.0.11 $dir/before
in_guest web "ping -i 0.2 10.0.2.2 >/tmp/pings 2>&1 & echo \$! >/tmp/ping"
# dom0 has to send the packets, whoever they are for. The stub is compared with a flood of another one, in turn.
for _ in 1 2 3; do
    flooded other 10.9.0.12
    flooded own 10.9.0.11
done
in_guest web "kill -INT \$(cat /tmp/ping); sleep 1; cat /tmp/pings" >/tmp/pings
counts=$(sed -n 's/^\([0-9]*\) .*transmitted, \([0-9]*\) .*received.*/\1 \2/p' /tmp/pings)
within 20 "the stub can be scraped again" scrape 10.9.0.11 $dir/after
frames() { sed -n 's/^bulkhead_stub_network_frames_total{.*op="receive"} //p' $dir/"$1"; }
reads again
again=$p50
# sent WHOSE: the packets of the smallest of its floods.
sent() { sort -n $dir/count.of."$1" | head -n 1; }
for whose in own other; do
    check "it was a flood of the $whose stub: $(sent $whose) packets in 14 s at least" [ "$(sent $whose)" -ge 5000 ]
done
say "packets sent to the stub: $(tr '\n' ' ' <$dir/count.of.own), of which it took $(($(frames after) - $(frames before)))"
figure read-p50-before "$quiet" us
figure read-p50-flooded "$(median own)" us
figure read-p50-other-flooded "$(median other)" us
figure read-p50-after "$again" us
equal "the guest's pings lost of ${counts% *} in the flood" 0 $((${counts% *} - ${counts#* }))
check "reads in a flood of the stub take at most 1.2 times as long as in one of another: $(median own) against $(median other) us" \
    awk -v a="$(median own)" -v b="$(median other)" 'BEGIN { exit a > 1.2 * b }'
equal "restarts of the stub" 0 "$(grep -c 'restart [0-9]* after' "$(stub_log $stub)")"

# --- either end goes and comes back
vif=vif-$(xl domid $stub)-0
driver=/sys/bus/xen-backend/drivers/vif
echo "$vif" >$driver/unbind
sleep 1
echo "$vif" >$driver/bind
# The kernel binds it anew, and nobody runs xl's script.
ip link set "vif$(xl domid $stub).0" master xenbr0
ip link set "vif$(xl domid $stub).0" up
within 20 "netback was bound anew, and the stub is scraped again" scrape 10.9.0.11 $dir/stub.om
number=$(xl domid $stub)
xl destroy $stub
within 60 "a stub that was destroyed is back, with its network" scrape 10.9.0.11 $dir/stub.om
equal "its number" "$number" "$(xl domid $stub)"
equal "the address of its card" "$mac" "$(xl network-list $stub | awk 'NR == 2 { print $3 }')"
equal "the guest's pings lost of 10" 0 "$(pings_lost web 10)"

# --- the log
sleep 2
for each in bare2 bare3; do
    check "rsyslog has each line of $each-bulkhead's console, in order" same_lines $each-bulkhead $dir/log
done
say "a message: $(grep -m 1 'second hop connected' $dir/log)"
check "a message names guest and device" grep -q 'guest="web" device="0000:00:05.0"' $dir/log

check "bulkhead destroy" bulkhead destroy web
equal "interfaces and nodes that are left of the stub" "" "$(ip -o link | grep "vif$number\."; xenstore-ls -f / | grep "/vif/$number/")"
success
