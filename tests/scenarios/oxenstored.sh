#!/bin/sh
# With the xenstored in OCaml: devices come at start and later, the stub dies and is back, all leaves, and nothing is left.
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=6
#: device edu,addr=7
#: all
#: suite sid
#: xenstored oxenstored
#: timeout 300
. /rig/scenarios/lib.sh
BDF=0000:00:05.0
EDU=0000:00:06.0
OTHER=0000:00:07.0

check "dom0 runs oxenstored and no other" sh -c "pidof oxenstored && ! pidof xenstored"
# left: the nodes of devices, without the empty directories in which records are kept.
left() {
    xenstore-ls -f / | sed 's/ = .*//' | grep -E 'bulkhead|/pci/' |
        grep -vE '^/libxl/|^/local/domain/0/(backend/)?bulkhead(/[a-z-]+)?$' | sort
}
left >/tmp/before
guest_config g1
check "bulkhead run with two devices" bulkhead run /root/g1.cfg --device $BDF $EDU
check "e1000e comes up" network_up g1
equal "pings lost of 10" 0 "$(pings_lost g1 10)"
check "a third device comes" bulkhead attach g1 --device $OTHER
equal "the guest's bus" "8086:10d3 1234:11e8 1234:11e8 " "$(in_guest g1 "lspci -n" | awk '{ print $3 }' | tr '\n' ' ')"

accesses g1
number=$(xl domid g1-bulkhead)
for round in 1 2; do
    sleep 4
    check "round $round: the stub is destroyed" xl destroy g1-bulkhead
    within 30 "round $round: it is back" sh -c "[ \$(grep -c 'is back after' /var/log/bulkhead/serve.log) -ge $round ]"
done
sleep 3
accesses_end g1
equal "the stub has the number that it had" "$number" "$(xl domid g1-bulkhead)"
check "the guest rebinds its driver" in_guest g1 "at=0000:00:00.0; $REBIND; $NETWORK_UP"
equal "pings lost of 10" 0 "$(pings_lost g1 10)"

check "a device leaves" bulkhead detach --trusted-guest $EDU
kill -KILL "$(launcher_pid)"
check "another leaves, with a new service" bulkhead detach --trusted-guest $OTHER
check "the last leaves" bulkhead detach --trusted-guest g1
equal "the guest's bus" "" "$(in_guest g1 "lspci -n")"
check "a first device comes to the guest that runs" bulkhead attach g1 --device $EDU
equal "the guest's bus" "1234:11e8 " "$(in_guest g1 "lspci -n" | awk '{ print $3 }' | tr '\n' ' ')"
check "bulkhead destroy" bulkhead destroy g1
within 10 "only dom0 is left" sh -c "[ \$(xl list | wc -l) = 2 ]"
quiet $BDF
left >/tmp/after
diff /tmp/before /tmp/after || failure "nodes are left"
equal "complaints in dom0" "" "$(complaints)"
equal "errors and warnings of the service, but for stubs that died" "" \
    "$(grep -iE 'error|warn' /var/log/bulkhead/serve.log | grep -vE 'g1-bulkhead|died|dead|launcher is gone')"
success
