#!/bin/sh
# What operators ask: doctor, explain, status, dry runs; as text for 80 columns and as JSON, with exit codes that are documented.
#: suite trixie
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=8
#: timeout 900
. /rig/scenarios/lib.sh
CARD=0000:00:05.0 EDU=0000:00:08.0

# code EXPECTED COMMAND...: its exit code. What it prints is left in /tmp/out and /tmp/err.
code() {
    expected=$1
    shift
    "$@" >/tmp/out 2>/tmp/err
    code=$?
    [ $code = "$expected" ] || { cat /tmp/out /tmp/err; failure "exit code $code, expected $expected: $*"; }
    echo "ok: exit code $expected: $*"
}
# narrow COMMAND...: no line of it is longer than 80 columns.
narrow() {
    COLUMNS=80 "$@" >/tmp/out 2>&1
    cat /tmp/out
    equal "lines of $2 over 80 columns" "" "$(awk 'length($0) > 80 && /[^ ] [^ ]/' /tmp/out)"
}
# state: what a dry run must leave as it is.
state() {
    xl list | awk 'NR > 1 { print $1, $2 }'
    for device in /sys/bus/pci/devices/*; do echo "${device##*/} $(readlink "$device/driver") $(cat "$device/enable")"; done
    xenstore-ls -f /local/domain/0/bulkhead 2>/dev/null
    xenstore-ls -f /libxl/pci 2>/dev/null
}

mkdir -p /usr/share/misc
printf '8086  Intel\n\t10d3  Card\n' >/usr/share/misc/pci.ids
check "dom0 drives the card" modprobe e1000e

# --- doctor
narrow bulkhead doctor
code 0 bulkhead doctor --json
check "the host is sound, and each finding that is not ok has a next step" \
    jq -e '.version == 1 and .sound and ([.findings[] | select(.level != "ok" and .next == null)] == [])' /tmp/out
for finding in dom0 iommu interrupt-remapping xsm config-space libraries modules xen-pciback xenstore policy declarations; do
    equal "doctor: $finding" ok "$(jq -r --arg check $finding '[.findings[] | select(.check == $check).level] | unique | join(" ")' /tmp/out)"
done
mkdir -p /etc/bulkhead
echo 'msi = maybe' >/etc/bulkhead/policy.toml
code 1 bulkhead doctor
check "a policy that is broken is found, with its line" sh -c "grep 'PROBLEM policy: .*line 1' /tmp/out && grep 'next: correct the line' /tmp/out"
rm /etc/bulkhead/policy.toml

# --- dry runs
guest_config g1
state >/tmp/before
COLUMNS=80 bulkhead run /root/g1.cfg --device $CARD --dry-run
code 0 bulkhead run /root/g1.cfg --device $CARD,permissive=1 --dry-run
for line in "start the service" "take $CARD .8086:10d3 Intel Card. from dom0.s driver e1000e, and reset it by PM" \
    "create guest g1 from /root/g1.cfg" "give $CARD to guest g1 on permissive"; do
    check "it tells: $line" grep -- "- $line" /tmp/out
done
code 0 bulkhead run /root/g1.cfg --device $CARD --dry-run --json
check "and as JSON" jq -e '.devices[0].reset == "PM" and .stub == "g1-bulkhead"' /tmp/out
ip link set "$(ls /sys/bus/pci/devices/$CARD/net)" up
code 1 bulkhead run /root/g1.cfg --device $CARD --dry-run
check "a refusal is that of the command itself" grep "interface eth.* is up" /tmp/err
ip link set "$(ls /sys/bus/pci/devices/$CARD/net)" down
code 2 bulkhead run /root/g1.cfg --dry-run --device $CARD --nonsense
state >/tmp/after
check "nothing was changed" cmp /tmp/before /tmp/after

# --- explain a device that no guest has
code 0 bulkhead explain $CARD,quirk=f0:2:ff --json
check "each of the 4096 bytes has an owner, and the quirk is seen" \
    jq -e '.devices[0] | .guest == null and ([.regions[].bytes] | add) == 4096 and ([.regions[] | select(.owner == "quirk").offset] == [240])' /tmp/out

# --- a guest
code 0 bulkhead run /root/g1.cfg --device $CARD --json
check "run reports what it did" jq -e '.command == "run" and .exit_code == 0 and (.done | length) > 2 and .error == null' /tmp/out
check "the guest answers" in_guest g1 true
check "the guest writes what is dropped" in_guest g1 "setpci -s 00:00.0 LATENCY_TIMER=40; setpci -s 00:00.0 e0.b=5"
narrow bulkhead status
check "the device's name stands beside its ids" grep "$CARD  8086:10d3 Intel Card" /tmp/out
narrow bulkhead explain g1
within 5 "the dropped write is counted at its register" sh -c "bulkhead explain $CARD --json |
    jq -e '.devices[0] | .guest.name == \"g1\" and (.regions[] | select(.register == \"Latency Timer\") | .dropped > 0)'"
check "what explain says, the guest finds: bits of COMMAND" sh -c "bulkhead explain $CARD --json |
    jq -e '.devices[0].regions[] | select(.register == \"Command\").bits | .can_set == 23 and .can_clear == 20'"
code 1 bulkhead explain $CARD,permissive=1
check "the terms of a guest are those that it has" grep "leave the terms out" /tmp/err
code 0 bulkhead explain g1 --html /tmp/page.html
cp /tmp/page.html /rig/out/explain.html
check "the page needs nothing from elsewhere" sh -c "grep -q '<svg' /tmp/page.html && ! grep -E 'https?://|src=|url\(' /tmp/page.html"
code 0 bulkhead attach g1 --device $EDU --dry-run
check "a dry run of attach" grep -- "- use stub g1-bulkhead, which exists" /tmp/out
equal "devices of g1" 1 "$(bulkhead status --json | jq '.stubs[0].devices | length')"
code 1 bulkhead attach g1 --device 00:1e.7 --json
check "a failure has its report too" jq -e '.exit_code == 1 and (.error | contains("no PCI device"))' /tmp/out

# --- watch
bulkhead status --watch >/tmp/watched 2>&1 &
watcher=$!
within 5 "it shows the guest" grep "guest g1" /tmp/watched
check "attach" bulkhead attach g1 --device $EDU
within 5 "it shows what has changed" grep $EDU /tmp/watched
kill -TERM $watcher
wait $watcher
equal "exit code of --watch after a signal" 0 $?
began=$(cut -d . -f 1 /proc/uptime)
bulkhead status --watch | head -n 1
now=$(cut -d . -f 1 /proc/uptime)
check "it ends when its reader does" [ $((now - began)) -le 3 ]

# --- a guest that is slow to boot stays
bare_guest slow loglevel=info
sed -i "s|^kernel = .*|kernel = \"/usr/lib/bulkhead/bulkhead-stub\"|" /root/slow.cfg
code 0 bulkhead detach $EDU --json
code 0 bulkhead release $EDU --trusted-guest --json
code 3 bulkhead run /root/slow.cfg --device $EDU --wait 8
check "it says what it waits for, and how to look and undo" sh -c "grep 'waiting.*guest slow' /tmp/err && grep 'bulkhead destroy slow' /tmp/err"
check "the guest is there" xl domid slow
code 0 bulkhead destroy slow --json
check "bulkhead destroy" bulkhead destroy g1
success
