#!/bin/sh
# A guest that attacks its backend in every way that advisories tell of harms nobody but itself.
#: device e1000e,netdev=n0,addr=5
#: device e1000e,netdev=n1,addr=6
#: device edu,addr=7
#: timeout 400
. /rig/scenarios/lib.sh
# To repeat a run, put the seed that it printed here.
SEED=$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')
COUNT=30000
ATTACKS=10
say "seed $SEED, $COUNT requests of garbage"

guest_config witness
check "a second guest with a card of its own" bulkhead run /root/witness.cfg --device 0000:00:06.0
check "its network is up" network_up witness
equal "its pings lost of 10 before" 0 "$(pings_lost witness 10)"

# lines FILE...: how many there are.
lines() { cat "$@" 2>/dev/null | wc -l; }
log=$(stub_log hostile)
dmesg -c >/dev/null
xl dmesg -c >/dev/null
service=$(lines /var/log/bulkhead/*.log)
bare_guest hostile "mode=hostile seed=$SEED count=$COUNT"
check "the hostile guest" bulkhead run /root/hostile.cfg --device 0000:00:05.0 --device 0000:00:07.0
guest=$(xl domid hostile)
stub=$(bulkhead status --json | jq -r '.stubs[] | select(.guest.name == "hostile") | .name')
number=$(xl domid "$stub")
read -r began _ </proc/uptime

# New connections are the toolstack's to allow: here they are, as often as the guest wants.
touch /tmp/attacking
(
    node=/local/domain/$guest/data/ask
    while [ -e /tmp/attacking ]; do
        case $(xenstore-read "$node" 2>/dev/null) in
        begin) xenstore-write "$node" "" ;;
        anew) xenstore-write "/local/domain/$number/backend/pci/$guest/0/state" 1 "$node" "" ;;
        esac
        usleep 100000
    done
) &
lost=0 sent=0
until grep -qE 'INFO  done|failed:|panic' "$log"; do
    [ "$(cut -d. -f1 /proc/uptime)" -lt 360 ] || failure "the hostile guest comes to no end"
    lost=$((lost + $(pings_lost witness 25)))
    sent=$((sent + 25))
done
rm /tmp/attacking
read -r now _ </proc/uptime
say "attacked for $(awk -v a="$began" -v b="$now" 'BEGIN { print b - a }') s"
tr -d '\r' <"$log" | grep -E 'survived|failed|panic' | sed 's/^.*\(survived\|failed\|panic\)/  \1/'
equal "attacks after each of which the stub answered" $ATTACKS "$(grep -c survived "$log")"
equal "the second guest's pings lost of $sent meanwhile" 0 "$lost"
equal "the stub is the domain that it was" "$number" "$(xl domid "$stub")"
said=$(lines "$(stub_log "$stub")")
kernel=$(dmesg | wc -l)
xen=$(xl dmesg | wc -l)
service=$(($(lines /var/log/bulkhead/*.log) - service))
say "log lines: stub $said, service $service, dom0's kernel $kernel, Xen $xen"
# of KEY: what status says of the hostile guest's stub.
bulkhead status --json >/rig/out/status.json
of() { jq -c ".stubs[] | select(.name == \"$stub\") | $1" /rig/out/status.json; }
say "by status: $(of .served.counters)"
check "status tells what the guest is to blame for" [ "$(of .served.counters.blamed_guest)" -gt 1000 ]
check "and of events without a request" [ "$(of .served.counters.spurious_events)" -gt 0 ]
equal "writes that only dom0's guard has stopped" "[]" "$(of .served.refused)"
equal "interrupts, after all connections that ended as MSI-X was being turned on" '["intx","intx"]' "$(of '[.devices[].mode]')"
check "XSA-120: the devices still decode memory" sh -c '
    for device in 05 07; do [ $((0x$(setpci -s $device.0 COMMAND) & 2)) = 2 ] || exit 1; done'
check "XSA-130: no log was flooded" [ $((said + kernel + xen + service)) -lt 600 ]

check "bulkhead destroy" bulkhead destroy hostile
quiet 0000:00:05.0
equal "the second guest's pings lost of 10 after" 0 "$(pings_lost witness 10)"
success
