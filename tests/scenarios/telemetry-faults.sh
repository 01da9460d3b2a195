#!/bin/sh
# A stub with a network fails, in its network code and elsewhere, and a hostile backend does its worst to the interface: the
# guest is served, and rsyslog has what the stub said before it failed.
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=6
#: packages rsyslog
#: suite trixie
#: cpus 2
#: timeout 900
#: timeout-all 2400
. /rig/scenarios/lib.sh
needs_speed
BDF=0000:00:05.0
GATEWAY=10.9.0.1
SEED=${SEED:-$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')}
[ -z "$ALL" ] || COUNT=${COUNT:-1000000}
COUNT=${COUNT:-50000}
dir=/run/telemetry
check "a bridge" bridge_up xenbr0 $GATEWAY/24
check "rsyslog" collect_syslog $dir $GATEWAY

guest_config web
check "a guest whose stub has a network, and fails on demand" bulkhead run /root/web.cfg --device $BDF \
    --kernel /rig/bulkhead-stub-net-inject --telemetry "bridge=xenbr0,address=10.9.0.11/24,syslog=$GATEWAY:514"
check "the guest's network is up" network_up web
stub=web-bulkhead
log=$(stub_log $stub)
home=/local/domain/$(xl domid $stub)
domid=$(xl domid $stub)
said() { tr -d '\r' <"$log" | grep -c "$1"; }
reads() { [ "$(in_guest web "setpci -s 00:00.0 VENDOR_ID")" = 8086 ]; }
scrape() { timeout 3 wget -q -O $dir/scraped http://10.9.0.11:9743/metrics; }
# fail POINT KIND NUMBER: orders a failure, and waits for the restart after it.
fail() {
    xenstore-write "$home/control/bulkhead-inject" "$1:$2:1:$3"
    restarted() {
        # Packets give the network a turn, reads give the backend one.
        ping -c 1 -W 1 10.9.0.11 >/dev/null 2>&1
        reads
        [ "$(said "restart $3 after")" -ge 1 ]
    }
    within 30 "restart $3, after $2 at $1" restarted "$@"
}

within 20 "the stub is scraped" scrape
fail conf_read panic 1
within 20 "rsyslog has all that the stub has said, the panic's lines too" same_lines $stub $dir/log
check "the panic's line is there" grep -q 'panicked at' /tmp/collected
say "$(grep -m 1 'panicked at' $dir/log)"

in_guest web "ping -i 0.2 10.0.2.2 >/tmp/pings 2>&1 & echo \$! >/tmp/ping"
fail network panic 2
within 20 "the stub is scraped again" scrape
fail network hang 3
within 20 "the stub is scraped again" scrape
fail network page-fault 4
check "the log says that the network is given up" grep -q 'network: given up after 3 failures' "$log"
check "the stub is not scraped any more" sh -c '! timeout 3 wget -q -O /dev/null http://10.9.0.11:9743/metrics'
check "the guest is served on" reads
equal "the stub is the domain that it was" "$domid" "$(xl domid $stub)"
in_guest web "kill -INT \$(cat /tmp/ping); sleep 1; cat /tmp/pings" >/tmp/pings
counts=$(sed -n 's/^\([0-9]*\) .*transmitted, \([0-9]*\) .*received.*/\1 \2/p' /tmp/pings)
equal "the guest's pings lost of ${counts% *} meanwhile" 0 $((${counts% *} - ${counts#* }))
xl destroy $stub
within 60 "a new stub has the network again" scrape

# --- a hostile backend; the nodes are as libxl would write them for `backend=evil`
bare_guest second "mode=idle"
check "a second guest" bulkhead run /root/second.cfg --device 0000:00:06.0 --kernel /usr/lib/bulkhead/bulkhead-stub-net
say "seed $SEED, $COUNT random responses"
bare_guest evil "mode=netback seed=$SEED count=$COUNT"
check "the backend's domain" xl create -q /root/evil.cfg
evil=$(xl domid evil)
front=$(xl domid second-bulkhead)
f=/local/domain/$front/device/vif/0
b=/local/domain/$evil/backend/vif/$front/0
xenstore-write "$b" "" "$f" ""
xenstore-chmod "$f" "n$front" "r$evil"
xenstore-chmod "$b" "n$evil" "r$front"
xenstore-write "$f/backend" "$b" "$f/backend-id" "$evil" "$f/mac" 00:16:3e:00:00:66 "$f/handle" 0 "$f/state" 1
xenstore-write "$b/frontend" "$f" "$b/frontend-id" "$front" "$b/online" 1 "$b/mac" 00:16:3e:00:00:66 "$b/handle" 0 "$b/state" 1
evil_log=$(stub_log evil)
told() { tr -d '\r' <"$evil_log" | grep -c "$1"; }
over() { [ "$(told 'netback: .*done, seed')" -ge 1 ]; }
limit=$(($([ "$ALL" ] && echo 1800 || echo 240) * 5))
until over; do
    limit=$((limit - 1))
    [ $limit -gt 0 ] || { tail -n 20 "$evil_log"; failure "the backend does not come to an end"; }
    [ "$(told 'failed:')" = 0 ] || break
    usleep 200000
done
tr -d '\r' <"$evil_log" | sed -n 's/.*netback: /  /p' | grep -v 'of .* random' | tail -n 30
equal "attacks that were not noticed" "" "$(tr -d '\r' <"$evil_log" | grep 'failed:')"
figure rounds "$(told 'netback: round .* done')"
figure random-responses "$COUNT"
second=$(stub_log second-bulkhead)
equal "restarts and panics of the stub" 0 "$(grep -cE 'panicked|restart [0-9]+ after' "$second")"
check "the network was given up in words" grep -q 'network given up: ' "$second"
say "$(tr -d '\r' <"$second" | grep -m 1 -o 'network given up: .*')"
check "the stub's log was not flooded: $(wc -l <"$second") lines" [ "$(wc -l <"$second")" -lt 300 ]
equal "the second guest's stub serves" connected "$(bulkhead status --json | jq -r '.stubs[] | select(.guest.name == "second") | .guest.state')"
check "the first guest is served" reads
success
