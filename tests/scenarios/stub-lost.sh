#!/bin/sh
# A stub that cannot be brought back: its guest sees an orderly unplug. One that dies again and again stays away; one
# whose number another domain has by then is replaced by one of another number.
#: device e1000e,netdev=n0,addr=5
#: device pcie-root-port,id=rp1,chassis=1,slot=1,addr=8
#: device e1000e,netdev=n1,bus=rp1
#: suite bookworm
#: timeout 900
. /rig/scenarios/lib.sh
BDF=0000:00:05.0
PORT=0000:00:08.0
BEHIND=$(basename "$(ls -d /sys/bus/pci/devices/$PORT/0000:*)")
POLICY=/etc/bulkhead/policy.toml
LOG=/var/log/bulkhead/serve.log
clock() { cut -d. -f1 /proc/uptime; }

guest_config g1
check "bulkhead run" bulkhead run /root/g1.cfg --device $BDF
check "e1000e comes up" network_up g1
stub=g1-bulkhead

began=$(clock)
killed=
until bulkhead status | grep -q '^failed: '; do
    [ $(($(clock) - began)) -lt 240 ] || failure "no end of the crash loop"
    # Each time that it is back, and not before: one that dies on its way is replaced in another way.
    back=$(grep -c 'is back after' $LOG)
    [ "$back" = "$killed" ] || { xl destroy $stub && killed=$back; }
    usleep 100000
done
say "given up after $(($(clock) - began)) s: $(bulkhead status | grep '^failed: ')"
# Decision 58: a life counts as short if it took less than three seconds, or than the return before it. A slow xl makes some
# longer, and the count begins again. The log's times may be off by 200 ms.
awk '{ split(substr($1, 13, 12), t, ":"); now = (t[1] * 60 + t[2]) * 60 + t[3] }
    match($0, /is back after [0-9]+ ms/) { took = substr($0, RSTART + 14, RLENGTH - 17) / 1000; back = now; returns++ }
    /was destroyed$/ && returns && now - back >= (took > 3 ? took : 3) - 0.2 { returns = 0 }
    END { print returns }' $LOG >/tmp/returns
equal "returns since the last life that was not short" 5 "$(cat /tmp/returns)"
check "it was given up after the sixth death in a row" sh -c "bulkhead status | grep '^failed: .*was destroyed, 6 times in a row'"
within 120 "the guest lets go of its devices" grep -q 'has let go of its devices' $LOG
say "unplugged $(($(clock) - began)) s after the first death"
within 10 "the attachment is cleared away" sh -c "bulkhead status --json | jq -e '.stubs == []'"
quiet $BDF
equal "devices of the guest" "" "$(in_guest g1 "lspci -n")"
equal "no stub is left" "" "$(xl list | grep bulkhead)"
check "status says failed, with the next step" sh -c "bulkhead status | grep '^failed: .*bulkhead attach g1 --device $BDF'"
# On terms of its own, with a device that has a bridge's rule, to see whether both come back so.
check "that step, with one more device" bulkhead attach g1 --device $BDF,permissive=0,quirk=44:2:ff "$BEHIND" --no-msi-below $PORT
# terms: on what terms the guest has its devices.
terms() { bulkhead status --json | jq -c '[.stubs[].devices[] | {bdf, terms}]'; }
given=$(terms)
say "terms: $given"
check "the bridge's rule is among them" sh -c "echo '$given' | grep -q 'command line, --no-msi-below $PORT'"
equal "status says failed no more" "[]" "$(bulkhead status --json | jq -c .failed)"
check "e1000e comes up again" network_up g1
equal "pings lost" 0 "$(pings_lost g1 5)"

# By now the file says otherwise.
printf '%s\n' "[[device]]" 'match = "8086:10d3"' "permissive = true" 'aer = "destroy"' \
    "[[bridge]]" "address = \"$PORT\"" "msi = true" >$POLICY
number=$(xl domid $stub)
xl list -l "$number" | jq -c "{domid: $number, config: (.[0].config | .c_info.name = \"squatter\" | del(.c_info.uuid))}" >/tmp/order
kill -9 "$(launcher_pid)"
within 5 "the service is dead" sh -c "! bulkhead status | grep -q 'service: running'"
check "xl destroy of the stub" xl destroy $stub
check "another domain takes its number" sh -c "bulkhead recreate </tmp/order"
equal "its name" squatter "$(xl domname "$number")"
began=$(clock)
setsid bulkhead serve >>$LOG 2>&1 </dev/null &
within 180 "the guest has its devices again" grep -q 'by a stub with another number' $LOG
say "replugged after $(($(clock) - began)) s"
check "the stub's number is another one" [ "$(xl domid $stub)" != "$number" ]
equal "the devices' terms" "$given" "$(terms)"
in_guest g1 "setpci -s 00:00.0 48.l=5a5a5a5a" || failure "the guest's write"
check "a register without a rule is not the guest's" [ "$(setpci -s $BDF 48.l)" != 5a5a5a5a ]
equal "the other domain's home is its own" "" "$(xenstore-ls "/local/domain/$number/backend" 2>/dev/null)"
check "e1000e comes up again" network_up g1
equal "pings lost" 0 "$(pings_lost g1 5)"
equal "status says failed no more" "[]" "$(bulkhead status --json | jq -c .failed)"
check "bulkhead destroy" bulkhead destroy g1
check "xl destroy of the other domain" xl destroy squatter
quiet $BDF
equal "what is left of failures" "" "$(xenstore-ls /local/domain/0/bulkhead/failed 2>/dev/null)"
success
