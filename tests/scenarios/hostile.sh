#!/bin/sh
# A guest that attacks its backend in every way that advisories tell of harms nobody but itself.
#: first
#: device e1000e,netdev=n0,addr=5
#: device e1000e,netdev=n1,addr=6
#: device edu,addr=7
#: suite bookworm
#: timeout 800
. /rig/scenarios/lib.sh
# To repeat a run, give the seed that it printed: `--set SEED=N`. `--set COUNT=1000000` for a long one.
SEED=${SEED:-$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')}
COUNT=${COUNT:-4000}
ATTACKS=15
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

# What only dom0 can do, here done as often as the guest wants.
# second: a second device of the guest, with the same backend, as if the toolstack had made it.
second() {
    ours=/local/domain/$number/backend/pci/$guest/1 theirs=/local/domain/$guest/device/pci/1
    xenstore-write "$ours" "" "$theirs" ""
    # What is made below is theirs too.
    xenstore-chmod "$ours" "n$number" "r$guest"
    xenstore-chmod "$theirs" "n$guest" "r$number"
    xenstore-write "$theirs/backend" "$ours" "$theirs/backend-id" "$number" "$theirs/state" 1
    xenstore-write "$ours/frontend" "$theirs" "$ours/frontend-id" "$guest" "$ours/online" 1 "$ours/state" 1
}
second_gone() { xenstore-rm "/local/domain/$number/backend/pci/$guest/1" "/local/domain/$guest/device/pci/1"; }
# decode BITS: of both devices.
decode() { for device in 05 07; do setpci -s $device.0 COMMAND="$1"; done; }
touch /tmp/attacking
(
    node=/local/domain/$guest/data/ask
    while [ -e /tmp/attacking ]; do
        request=$(xenstore-read "$node" 2>/dev/null)
        case $request in
        begin) ;;
        anew) xenstore-write "/local/domain/$number/backend/pci/$guest/0/state" 1 ;;
        second) second ;;
        second-gone) second_gone ;;
        decode-off) decode 0:2 ;;
        decode-on) decode 2:2 ;;
        esac
        if [ -n "$request" ]; then xenstore-write "$node" ""; else usleep 50000; fi
    done
) >/tmp/asked 2>&1 &
lost=0 sent=0
until grep -qE 'INFO  done|failed:|panic' "$log"; do
    lost=$((lost + $(pings_lost witness 25)))
    sent=$((sent + 25))
done
rm /tmp/attacking
read -r now _ </proc/uptime
took=$(awk -v a="$began" -v b="$now" 'BEGIN { print b - a }')
say "attacked for $took s"
tr -d '\r' <"$log" | grep -E 'survived|failed|panic|more were to be had' | sed 's/^.*  *\(survived\|failed\|panic\|[0-9]* nodes\)/  \1/'
equal "attacks after each of which the stub answered" $ATTACKS "$(grep -c survived "$log")"
equal "the second guest's pings lost of $sent meanwhile" 0 "$lost"
equal "the stub is the domain that it was" "$number" "$(xl domid "$stub")"
said=$(lines "$(stub_log "$stub")")
kernel=$(dmesg | wc -l)
xen=$(xl dmesg | wc -l)
service=$(($(lines /var/log/bulkhead/*.log) - service))
say "log lines: stub $said, service $service, dom0's kernel $kernel, Xen $xen"
# per_minute LINES: of the time that the attacks took.
per_minute() { awk -v lines="$1" -v s="$took" 'BEGIN { printf "%.0f\n", lines * 60 / s }'; }
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
check "XSA-130: no log was flooded" [ "$(per_minute $((said + kernel + xen + service)))" -lt 600 ]
figure attacks $ATTACKS
figure requests-of-garbage "$COUNT"
figure attacked "$took" s
figure pings-lost "$lost" "of $sent"
figure stub-restarts "$(of '.served.counters.restarts // 0')"
figure log-lines-stub "$(per_minute "$said")" per minute
figure log-lines-service "$(per_minute "$service")" per minute
figure log-lines-dom0-kernel "$(per_minute "$kernel")" per minute
figure log-lines-xen "$(per_minute "$xen")" per minute

check "bulkhead destroy" bulkhead destroy hostile
quiet 0000:00:05.0
equal "the second guest's pings lost of 10 after" 0 "$(pings_lost witness 10)"
success
