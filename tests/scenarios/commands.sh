#!/bin/sh
# Commands end what they have made and nothing else, find what is meant by its name of now, and come to an end whoever reads them.
#: first
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=7
#: suite trixie
#: timeout 900
. /rig/scenarios/lib.sh
BDF=0000:00:05.0
EDU=0000:00:07.0
ORDERS=/run/bulkhead/inject
KERNEL=/usr/lib/bulkhead/bulkhead-stub

# lives NAME...: these domains are there. idle NAME [LINE]...: writes NAME.cfg, a guest that never looks for devices.
lives() { for domain; do xl domid "$domain" >/dev/null || return 1; done; }
idle() {
    idle=$1
    shift
    bare_guest "$idle" "loglevel=info" "$@"
    sed -i "s|^kernel = .*|kernel = \"$KERNEL\"|" "/root/$idle.cfg"
}
# free BDF...: dom0 has these devices again, and nothing is left of their guests.
free() {
    for device; do
        within 15 "$device is dom0's again" sh -c "! xl pci-assignable-list | grep $device"
    done
    equal "stubs, and notes of what is unfinished" "0 " \
        "$(bulkhead status --json | jq '.stubs | length') $(xenstore-ls /local/domain/0/bulkhead/unfinished 2>/dev/null)"
}
# background COMMAND...: starts it, and leaves its process in $command and what it says in /tmp/said.
background() {
    "$@" >/tmp/said 2>&1 &
    command=$!
}
# ends: waits for it, and leaves its exit code in $code.
ends() {
    wait $command
    code=$?
}

check "dom0 drives the card" modprobe e1000e
guest_config g1 'passthrough = "enabled"'
check "a guest" xl create -q /root/g1.cfg
# Somebody else's: one that is paused, as for a backup, and one that runs.
idle paused 'passthrough = "enabled"'
check "a paused guest of somebody else's" xl create -q -p /root/paused.cfg
idle mail 'passthrough = "enabled"'
sed -i 's/^kernel = .*/kernel = "\/rig\/guest\/test-guest"/' /root/mail.cfg
check "a guest of somebody else's" xl create -q -p /root/mail.cfg
check "g1 has booted" in_guest g1 true

# --- what is not ours is not destroyed, nor taken for a stub
refused "destroy of a paused guest" "no devices through Bulkhead" bulkhead destroy paused
refused "a guest as --stub" "domain mail is no stub: its kernel is /rig/guest" bulkhead attach g1 --stub mail --device $EDU --wait 3
refused "dom0 as --stub" "Domain-0 is dom0, and no stub" bulkhead attach g1 --stub Domain-0 --device $EDU
refused "the guest as --stub" "guest and stub at once" bulkhead attach g1 --stub g1 --device $EDU
refused "dom0 as the guest" "is dom0" bulkhead attach 0 --device $EDU
check "xl rename" xl rename mail g1-bulkhead
refused "a guest with the name of the stub" "g1-bulkhead is no stub|the stub of guest g1 would have that name" \
    bulkhead attach g1 --device $EDU
refused "destroy of a guest without devices" "no devices through Bulkhead" bulkhead destroy g1
check "xl rename" xl rename g1-bulkhead mail
check "all of them live" lives g1 paused mail
equal "dom0's nodes of a PCI frontend" "" "$(xenstore-ls /local/domain/0/device 2>/dev/null | grep pci)"
free $EDU

# --- names: of now, and such as are numbers
number=$(xl domid g1) mail=$(xl domid mail)
check "xl rename" xl rename mail "$number"
refused "a name that is a number" "$number is the name of domain $mail, and the number of domain g1" \
    bulkhead attach "$number" --device $EDU
check "xl rename" xl rename "$mail" mail
check "a stub made by hand" xl create -q /etc/bulkhead/stubdom.cfg 'name="by hand"'
check "it becomes g1's" bulkhead attach g1 --stub "by hand" --device 1234:11e8
equal "the guest's bus" "00:00.0 1234:11e8" "$(in_guest g1 "lspci -n" | awk '{ print $1, $3 }')"
check "xl rename" xl rename g1 www
check "another guest gets the old name" xl rename paused g1
refused "destroy of the old name" "g1 has no devices" bulkhead destroy g1
check "detach by what the device is" bulkhead detach --trusted-guest 1234:11e8
check "attach by the new name" bulkhead attach www --device $EDU
check "detach by the new name" bulkhead detach --trusted-guest www
check "xl rename" xl rename g1 paused
check "xl rename" xl rename www g1
check "all of them live" lives g1 paused mail
free $EDU

# --- what fails is undone, but for what was there before
check "a stub made by hand" xl create -q /etc/bulkhead/stubdom.cfg 'name="hand"'
check "xl destroy" xl destroy mail
idle mail 'passthrough = "enabled"'
check "a guest that never looks" xl create -q /root/mail.cfg
refused "attach to it" "gave up after 3 s" bulkhead attach mail --stub hand --device $EDU --wait 3
check "guest and stub live" lives mail hand
free $EDU
check "xl destroy" xl destroy hand
check "what that guest may have mapped does not matter here" bulkhead release --trusted-guest $EDU

# --- a slow guest keeps what it has; the wait may be as long as can be said
idle slow
bulkhead run --device $EDU --wait 2 /root/slow.cfg >/tmp/said 2>&1
equal "exit code of run, the guest slow" 3 $?
cat /tmp/said
check "it says what is to be done" grep -q 'Nothing was undone; .bulkhead destroy slow' /tmp/said
check "the log that is named is there" test -e "$(sed -n 's/.*; see \([^ ,]*\).*/\1/p' /tmp/said | head -n 1)"
check "guest and stub live" lives slow slow-bulkhead
check "destroy by the device" bulkhead destroy $EDU
free $EDU
background bulkhead run /root/slow.cfg --device $EDU --wait 18446744073709551615
within 20 "it waits for the guest" sh -c "xenstore-read /local/domain/\$(xl domid slow-bulkhead)/backend/pci/\$(xl domid slow)/0/state | grep 3"
# By itself that decides nothing; that the frontend is closed does.
xenstore-write "/local/domain/$(xl domid slow)/error/device/pci/0/error" "$(printf 'x\033[2Jy')"
sleep 1
check "run waits all the same" kill -0 $command
xenstore-write "/local/domain/$(xl domid slow)/device/pci/0/state" 6
ends
equal "exit code of run, the frontend closed" 1 $code
cat -v /tmp/said
check "what the guest says is told" grep -q 'domain slow says: x.u{1b}.2Jy' /tmp/said
equal "escape characters" 0 "$(grep -c "$(printf '\033')" /tmp/said)"
refused "all is undone" "invalid|not.*exist|not.*found" xl domid slow
free $EDU
background bulkhead run /root/slow.cfg --device $EDU
within 20 "it waits for the guest" sh -c "xenstore-read /local/domain/\$(xl domid slow-bulkhead)/backend/pci/\$(xl domid slow)/0/state | grep 3"
kill -HUP $command
ends
equal "exit code of run, hung up" 1 $code
refused "all is undone" "invalid|not.*exist|not.*found" xl domid slow
free $EDU

# --- a run that was killed leaves what destroy finds, by the UUID
echo "created:kill" >$ORDERS
/rig/bin/bulkhead-inject run /root/slow.cfg --device $EDU >/tmp/check 2>&1 && failure "run was not killed"
check "its guest is left, paused" sh -c "xl list slow | grep -- --p---"
check "xl rename" xl rename slow late
check "another guest gets its name" xl rename paused slow
refused "destroy of the name" "slow has no devices" bulkhead destroy slow
check "destroy of what was left" bulkhead destroy late
check "xl rename" xl rename slow paused
check "all others live" lives g1 paused mail
printf 'created:delay\ncreated:kill\n' >$ORDERS
/rig/bin/bulkhead-inject run /root/slow.cfg --device $EDU >/tmp/check 2>&1 && failure "run was not killed"
check "its guest and its stub are left" lives slow slow-bulkhead
check "destroy of both" bulkhead destroy slow
equal "domains" "4" "$(xl list | awk 'NR > 1' | wc -l)"
check "the device goes back with the next that has it" bulkhead attach g1 --device $EDU
check "detach" bulkhead detach --trusted-guest $EDU
free $EDU

# --- a reader that goes away, and a full disk
guest_config g2
bulkhead run /root/g2.cfg --device $BDF | head -n 1
check "the guest has its device all the same" sh -c "bulkhead status --json | jq -e '.stubs[0].guest | .name == \"g2\" and .state == \"connected\"'"
check "e1000e comes up" network_up g2
bulkhead detach --trusted-guest $BDF >/dev/full 2>&1
equal "exit code of detach, the disk full" 0 $?
free $BDF
bulkhead status | head -n 1
equal "the version of what programs read" 1 "$(bulkhead status --json | jq .version)"

check "all others live" lives g1 paused mail
equal "files of stubs that are left" "" "$(find /run/bulkhead -name '*cfg*')"
equal "complaints in dom0" "" "$(complaints)"
success
