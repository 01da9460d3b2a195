#!/bin/sh
# A stub with a network has one interface, on the bridge that was named, and has it again after each death; without the words nothing of it is there.
#: device e1000e,netdev=n0,addr=5
#: device e1000e,netdev=n1,addr=6
#: suite trixie
#: timeout 900
. /rig/scenarios/lib.sh
needs_speed
BDF=0000:00:05.0
ROUNDS=3
NET=bridge=xenbr0,address=10.9.0.9/24,syslog=10.9.0.1:514

network() { bulkhead status --json | jq -r '.stubs[0].network | "\(.bridge) \(.mac) \(.address) \(.metrics) \(.syslog)"'; }
# What a stub's interface may leave in dom0.
interfaces() {
    xenstore-ls -f /local/domain/0/backend 2>/dev/null | grep '/vif/'
    ls /sys/class/net
}

guest_config g1
refused "a bridge that is not there" "dom0 has no bridge xenbr0 for the stub's network: .ip link add xenbr0 type bridge" \
    bulkhead run /root/g1.cfg --device $BDF --telemetry bridge=xenbr0
check "a bridge" bridge_up xenbr0 10.9.0.1/24
interfaces >/tmp/before
refused "another bridge" "dom0 has no bridge other for the stub's network .it has xenbr0" \
    bulkhead run /root/g1.cfg --device $BDF --telemetry bridge=other
refused "a script that is not there" "there is no hotplug script /etc/xen/scripts/vif-other" \
    bulkhead run /root/g1.cfg --device $BDF --telemetry bridge=xenbr0,script=vif-other
refused "a domain that is not there" "the domain sys-net that is to have the stub's network does not run" \
    bulkhead run /root/g1.cfg --device $BDF --telemetry bridge=xenbr0,backend=sys-net
refused "nonsense" "metrics=0: expected a TCP port" \
    bulkhead run /root/g1.cfg --device $BDF --telemetry bridge=xenbr0,metrics=0
equal "domains besides dom0" 0 "$(($(xl list | wc -l) - 2))"
check "a dry run" sh -c "bulkhead run /root/g1.cfg --device $BDF --telemetry $NET --dry-run >/tmp/plan"
check "tells the network" grep -q "give the stub the network $NET, as 00:16:3e:" /tmp/plan

check "bulkhead run" bulkhead run /root/g1.cfg --device $BDF --telemetry "$NET"
stub=g1-bulkhead
number=$(xl domid $stub)
mac=$(bulkhead status --json | jq -r '.stubs[0].network.mac')
equal "status" "xenbr0 $mac 10.9.0.9/24 9743 10.9.0.1:514" "$(network)"
check "its interface is on the bridge" on_bridge xenbr0 "$number"
equal "xenstore" "$mac xenbr0" "$(xenstore-read "/local/domain/0/backend/vif/$number/0/mac") $(xenstore-read "/local/domain/0/backend/vif/$number/0/bridge")"
equal "the stub's memory in MiB" 6 "$(xl list $stub | awk 'NR == 2 { print $3 }')"
equal "the stub's command line" \
    "loglevel=info guest=g1 ip=10.9.0.9/24 metrics=9743 syslog=10.9.0.1:514" \
    "$(xl list -l $stub | jq -r '.[0].config.b_info | .cmdline // ."type.pv".cmdline')"
check "e1000e comes up" network_up g1
refused "further devices with another network" "a stub's network is set when it is created: leave --telemetry out" \
    bulkhead attach g1 --device 0000:00:06.0 --telemetry off

# --- it dies
in_guest g1 'ping -c 250 -i 0.1 -W 2 10.0.2.2 >/tmp/pings 2>&1 & echo started'
round=0
while [ $round -lt $ROUNDS ]; do
    sleep 4
    round=$((round + 1))
    check "round $round: xl destroy" xl destroy $stub
    within 20 "round $round: the stub is back" sh -c "[ \$(grep -c 'is back after' /var/log/bulkhead/serve.log) -ge $round ]"
    equal "its number" "$number" "$(xl domid $stub)"
    within 20 "its interface is on the bridge" on_bridge xenbr0 "$number"
    equal "its address" "$mac" "$(xenstore-read "/local/domain/0/backend/vif/$number/0/mac")"
done
grep -E 'is back after|was gone after|network' /var/log/bulkhead/serve.log

# --- and dies while there is no bridge: its guest is served all the same
check "the bridge goes" ip link delete xenbr0
check "xl destroy" xl destroy $stub
within 20 "the stub is back without it" sh -c "[ \$(grep -c 'is back after' /var/log/bulkhead/serve.log) -gt $ROUNDS ]"
within 30 "which the log says" grep -q "stub $stub has no network, and serves its guest without" /var/log/bulkhead/serve.log
equal "the guest's card answers" 8086 "$(in_guest g1 setpci -s 00:00.0 VENDOR_ID)"
check "the bridge comes back" bridge_up xenbr0 10.9.0.1/24
check "xl destroy" xl destroy $stub
within 30 "its interface is on the bridge" on_bridge xenbr0 "$number"
equal "status" "xenbr0 $mac 10.9.0.9/24 9743 10.9.0.1:514" "$(network)"
within 60 "the pings have ended" sh -c "guest-run g1 60 'grep -q received /tmp/pings'"
equal "pings answered" 250 "$(in_guest g1 cat /tmp/pings | sed -n 's/.*transmitted, \([0-9]*\) .*received.*/\1/p')"
check "bulkhead destroy" bulkhead destroy g1
within 10 "only dom0 is left" sh -c "[ \$(xl list | wc -l) = 2 ]"
interfaces >/tmp/after
check "no interface is left" cmp /tmp/before /tmp/after

# --- the policy file, and who counts before it
mkdir -p /etc/bulkhead
printf 'telemetry = "bridge=xenbr0"\n[[guest]]\nmatch = "g2"\ntelemetry = "off"\n' >/etc/bulkhead/policy.toml
check "run by the policy file" bulkhead run /root/g1.cfg --device $BDF
equal "status" "xenbr0 $mac dhcp 9743 null" "$(network)"
guest_config g2
check "the guest that has none" bulkhead run /root/g2.cfg --device 0000:00:06.0
equal "interfaces of its stub" 0 "$(xl network-list g2-bulkhead | grep -c backend)"
equal "networks of the two stubs" "true false" \
    "$(bulkhead status --json | jq -r '[.stubs | sort_by(.guest.name)[] | .network != null] | join(" ")')"
check "bulkhead destroy g2" bulkhead destroy g2

# --- the guest reboots: its next stub has the network that the last one had
printf 'telemetry = "off"\n' >/etc/bulkhead/policy.toml
domid=$(xl domid g1)
xl destroy g1
within 20 "its stub is gone" sh -c "[ \$(xl list | wc -l) = 2 ]"
uuid=$(bulkhead status --json | jq -r '.carried[0].uuid')
check "the guest is started again" xl create -q /root/g1.cfg "uuid=\"$uuid\"" 'passthrough="enabled"'
within 60 "it has its device" is_new g1 "$domid" $BDF
equal "status" "xenbr0 $mac dhcp 9743 null" "$(network)"
check "bulkhead destroy" bulkhead destroy g1

# --- a declaration counts before the policy file
check "declare" bulkhead declare g1 --device $BDF --telemetry bridge=xenbr0,metrics=off,syslog=10.9.0.1:514
check "run by the declaration" bulkhead run /root/g1.cfg
equal "status" "xenbr0 $mac dhcp null 10.9.0.1:514" "$(network)"
check "bulkhead destroy" bulkhead destroy g1

# --- a stub by hand
printf 'kernel = "/usr/lib/bulkhead/bulkhead-stub-net"\nname = "own"\ntype = "pv"\nmemory = 6\n%s\n' \
    'vif = ["bridge=xenbr0"]' 'on_crash = "preserve"' >/root/own.cfg
check "xl create own" xl create -q /root/own.cfg
check "xl create g2" xl create -q /root/g2.cfg 'passthrough="enabled"'
refused "a network for a stub that exists" "stub own exists, and a stub's network is set when it is created" \
    bulkhead attach g2 --stub own --device $BDF --telemetry bridge=xenbr0
check "attach by that stub" bulkhead attach g2 --stub own --device $BDF
equal "status" "xenbr0 $(xenstore-read "/local/domain/0/backend/vif/$(xl domid own)/0/mac") dhcp 9743 null" "$(network)"
check "bulkhead destroy" bulkhead destroy g2
within 10 "only dom0 is left" sh -c "[ \$(xl list | wc -l) = 2 ]"
interfaces >/tmp/after
check "no interface is left" cmp /tmp/before /tmp/after
equal "complaints in dom0" "" "$(complaints)"
success
