#!/bin/sh
# The stub is destroyed again and again under traffic: the service brings it back with its number, and the guest, unmodified,
# notices no more than a slow access.
#: first
#: device e1000e,netdev=n0,addr=5
#: device e1000e,netdev=n1,addr=6
#: suite bookworm
#: cpus 2
#: timeout 700
#: xenstored xenstored
#: xenstored oxenstored
. /rig/scenarios/lib.sh
needs_speed
BDF=0000:00:05.0
ROUNDS=$([ "$ALL" ] && echo 10 || echo 5)

# Parents without children stay, so nodes are named, not counted; libxl has some of its own for each domain.
left() {
    inventory | grep -vE 'memory|xenstore'
    xenstore-ls -f / | grep -v '^/libxl/' | grep -E '/pci/|backend/bulkhead/|bulkhead/attachment/'
    echo "domains that libxl knows: $(xenstore-list /libxl 2>/dev/null | grep -E '^[0-9]' | tr '\n' ' '), $(xenstore-list /vm | wc -l)"
}
left >/tmp/before
guest_config g1
check "bulkhead run" bulkhead run /root/g1.cfg --device $BDF
stub=$(bulkhead status --json | jq -r '.stubs[0].name')
number=$(xl domid "$stub")
check "e1000e comes up" network_up g1
equal "pings lost before" 0 "$(pings_lost g1 5)"
dmesg -c >/dev/null
header() { lspci -xxx -s $BDF | grep -vE '^[0-9a-f]{2}:'"[0-9a-f]{2}" | grep -v '^00:'; }
header >/tmp/header

accesses g1
PINGS=$((ROUNDS * 70))
in_guest g1 "ping -c $PINGS -i 0.1 -W 2 10.0.2.2 >/tmp/pings 2>&1 & echo started"
round=0
while [ $round -lt $ROUNDS ]; do
    sleep 4
    round=$((round + 1))
    check "round $round: xl destroy" xl destroy "$stub"
    within 10 "round $round: the stub is back" sh -c "[ \$(grep -c 'is back after' /var/log/bulkhead/serve.log) -ge $round ]"
done
sleep 3
accesses_end g1
equal "the stub has the number that it had" "$number" "$(xl domid "$stub")"
grep -E 'is back after|was gone after' /var/log/bulkhead/serve.log
# An emulated machine that has to share its processors takes longer; docs/containment.md has the limit, of the figures.
slowest destroyed $ROUNDS
within 60 "the pings have ended" sh -c "guest-run g1 60 'grep -q received /tmp/pings'"
answered=$(in_guest g1 cat /tmp/pings | sed -n 's/.*transmitted, \([0-9]*\) .*received.*/\1/p')
equal "pings of $PINGS answered, ten a second" $PINGS "$answered"
figure destroyed-pings-lost $((PINGS - answered)) "of $PINGS"
equal "MSI-X is still on" + "$(lspci -vv -s $BDF 2>/dev/null | sed -n 's/.*MSI-X: Enable\([-+]\).*/\1/p')"
equal "interrupts by status" "msi-x 3" "$(mode_of $BDF)"
header >/tmp/header.after
check "the device's configuration is as it was, but for what the guest wrote" cmp /tmp/header /tmp/header.after
equal "complaints in dom0" "" "$(complaints)"

check "the guest rebinds its driver" in_guest g1 "at=0000:00:00.0; $REBIND; $NETWORK_UP; $INTERRUPTS"
cp /tmp/check /tmp/lines
in_mode "after the rebind" "msi-x 3" /tmp/lines
equal "pings lost after the rebind" 0 "$(pings_lost g1 10)"
check "a second device comes" bulkhead attach g1 --device 0000:00:06.0
check "the stub dies again" xl destroy "$stub"
within 10 "and comes back" sh -c "[ \$(grep -c 'is back after' /var/log/bulkhead/serve.log) -gt $ROUNDS ]"
sleep 3
check "and the second device leaves" bulkhead detach 0000:00:06.0
equal "devices of the guest" 1 "$(in_guest g1 "lspci -n" | wc -l)"
given_up='pciback not responding'
equal "complaints in the guest, but for accesses given up" "" "$(guest_complaints g1 | grep -v "$given_up")"
figure destroyed-given-up "$(grep -c "$given_up" /rig/out/g1.dmesg)" accesses
check "bulkhead destroy" bulkhead destroy g1
quiet $BDF
within 10 "only dom0 is left" sh -c "[ \$(xl list | wc -l) = 2 ]"
sleep 1
left >/tmp/after
diff /tmp/before /tmp/after || failure "something leaks"
success
