#!/bin/sh
# On a Debian host the service creates stubs with a network, by Xen's own script and within the bounds of its unit, and brings them back.
#: host debian
#: all
#: suite trixie
#: device e1000e,netdev=n0,addr=5
#: timeout 480
. /rig/scenarios/lib.sh
CARD=0000:00:05.0
ROUNDS=3

install_bulkhead
check "a bridge" bridge_up xenbr0 10.9.0.1/24
guest_config web 'passthrough = "enabled"'
check "declare" bulkhead declare web --device $CARD --telemetry bridge=xenbr0
equal "notes" "" "$(grep note: /tmp/check)"
check "xl create" xl create -q /root/web.cfg
within 90 "the guest that the service has paused has its card" has web $CARD
stub=web-bulkhead
number=$(xl domid $stub)
mac=$(bulkhead status --json | jq -r '.stubs[0].network.mac')
check "its stub's interface is on the bridge" on_bridge xenbr0 "$number"
check "the card comes up" network_up web

round=0
while [ $round -lt $ROUNDS ]; do
    sleep 3
    round=$((round + 1))
    check "round $round: xl destroy" xl destroy $stub
    within 30 "round $round: the stub is back" sh -c "[ \$(journalctl -u bulkhead -o cat | grep -c 'is back after') -ge $round ]"
    equal "its number" "$number" "$(xl domid $stub)"
    within 60 "its interface is on the bridge" on_bridge xenbr0 "$number"
    equal "its address" "$mac" "$(xenstore-read "/local/domain/0/backend/vif/$number/0/mac")"
done
# An interface that has gone with its domain cannot be set down: Xen's script says so, and goes on.
journalctl -u bulkhead -o cat | grep -E 'is back after|was gone after'
equal "what the unit's bounds kept from Xen's script" "" \
    "$(journalctl -o cat | grep -iE 'not permitted|read-only file system|vif-bridge.*(fail|error)|has no network' |
        grep -v 'ip link set dev .* down failed')"
equal "pings lost" 0 "$(pings_lost web 10)"
check "bulkhead destroy" bulkhead destroy web
within 20 "only dom0 is left" sh -c "[ \$(xl list | wc -l) = 2 ]"
equal "interfaces that are left" "" "$(ls /sys/class/net/xenbr0/brif)$(xenstore-ls -f /local/domain/0/backend 2>/dev/null | grep '/vif/')"
success
