#!/bin/sh
# The stub is destroyed under traffic: the guest's card goes on, dom0 and the device notice nothing.
#: device e1000e,netdev=n0,addr=5
#: cpus 2
. /rig/scenarios/lib.sh
BDF=0000:00:05.0

guest_config g1
check "bulkhead run" bulkhead run /root/g1.cfg --device $BDF
stub=$(bulkhead status --json | jq -r '.stubs[0].name')
check "e1000e comes up" network_up g1
equal "pings lost before" 0 "$(pings_lost g1 5)"
dmesg -c >/dev/null
header() { lspci -xxx -s $BDF | grep -vE '^[0-9a-f]{2}:'"[0-9a-f]{2}" ; }
header >/tmp/before
in_guest g1 "ping -c 100 -i 0.1 -W 2 10.0.2.2 >/tmp/pings 2>&1 & echo started"
sleep 2
check "xl destroy of the stub" xl destroy "$stub"
within 5 "status says that the stub is gone" sh -c "bulkhead status --json | jq -e '.stubs[0].state == \"gone\"'"
sleep 10
equal "pings of 100 answered, ten a second" 100 "$(in_guest g1 cat /tmp/pings | sed -n 's/.* \([0-9]*\) packets received.*/\1/p;s/.*transmitted, \([0-9]*\) received.*/\1/p')"
header >/tmp/after
check "configuration space of the device is untouched" cmp /tmp/before /tmp/after
equal "MSI-X is still on" + "$(lspci -vv -s $BDF 2>/dev/null | sed -n 's/.*MSI-X: Enable\([-+]\).*/\1/p')"
equal "dom0's kernel log" "" "$(dmesg)"
check "the service lives" sh -c "bulkhead status --json | jq -e .service.running"
success
