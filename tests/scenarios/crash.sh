#!/bin/sh
# The stub panics in the middle of a guest's request: its console tells why, the request is answered, and the guest's pings go on.
#: suite trixie
#: device e1000e,netdev=n0,addr=5
. /rig/scenarios/lib.sh
KERNEL=/rig/bulkhead-stub-inject
PINGS=30

guest_config g1
check "bulkhead run, with an image that panics on demand" bulkhead run /root/g1.cfg --kernel $KERNEL --device 0000:00:05.0
stub=$(bulkhead status --json | jq -r '.stubs[0].name')
domid=$(xl domid "$stub")
check "e1000e comes up" network_up g1

# follow WHO FILE: shows each line that comes to a console from now on.
follow() {
    tail -n 0 -f "$2" | tr -d '\r' | while read -r line; do echo "  $1 | $line"; done &
}
# Busybox's tail looks once a second, so what happened within one is not in order across consoles.
follow guest "$(stub_log g1)"
follow "stub " "$(stub_log "$stub")"
in_guest g1 "(ping -c $PINGS -i 0.5 -W 2 10.0.2.2 2>&1 | tee /tmp/pings >/dev/hvc0; touch /tmp/pinged) >/dev/null 2>&1 &"
sleep 4
echo "  dom0  | at the guest's next request the stub is to panic; the guest reads its card's identity"
xenstore-write "/local/domain/$domid/control/bulkhead-inject" "conf_read:panic:1:1"
usleep 300000
identity=$(in_guest g1 "setpci -s 00:00.0 VENDOR_ID DEVICE_ID" | tr '\n' ' ')
echo "  dom0  | the guest has read $identity"
within 30 "the pings end" in_guest g1 "test -e /tmp/pinged"
sleep 1
equal "what the guest read over the panic" "8086 10d3 " "$identity"
equal "pings of $PINGS answered" $PINGS "$(in_guest g1 cat /tmp/pings | sed -n 's/.*transmitted, \([0-9]*\) .*received.*/\1/p')"
equal "the stub is the domain that it was" "$domid" "$(xl domid "$stub")"
equal "restarts by status" 1 "$(bulkhead status --json | jq '.stubs[0].served.counters.restarts')"
success
