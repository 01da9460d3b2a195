#!/bin/sh
# What an operator or a hostile guest gets wrong is refused in words, and changes nothing.
#: first
#: suite bookworm
#: device e1000e,netdev=n0,addr=5
#: device edu,addr=6
#: timeout 700
. /rig/scenarios/lib.sh
BDF=0000:00:05.0

# --- the command line
refused "a BDF that is none" "00:5" bulkhead run /root/g1.cfg --device 00:5
guest_config g1
refused "a device that does not exist" "0000:00:1e.7" bulkhead run /root/g1.cfg --device 0000:00:1e.7
refused "a file that does not exist" "/root/none.cfg" bulkhead run /root/none.cfg --device $BDF
refused "no device at all" "device" bulkhead run /root/g1.cfg
refused "an unknown command" "unrecognized|unexpected" bulkhead frobnicate
grep -v e820_host /root/g1.cfg >/root/g2.cfg
refused "a guest without e820_host" "e820_host" bulkhead run /root/g2.cfg --device $BDF
(cat /root/g1.cfg; echo "pci = [ \"$BDF\" ]") >/root/g3.cfg
refused "a guest that has the device by xl already" "pci" bulkhead run /root/g3.cfg --device $BDF
refused "a guest that does not exist" "nobody" bulkhead attach nobody --device $BDF
refused "a guest to destroy that does not exist" "nobody" bulkhead destroy nobody
refused "a bridge" "header|bridge" bulkhead run /root/g1.cfg --device 0000:00:1f.0
echo "nobody:x:65534:65534::/:/bin/sh" >>/etc/passwd
refused "without root" "root" su nobody -s /bin/sh -c "bulkhead run /root/g1.cfg --device $BDF"
check "dom0 still has its driver or none, and the guest was not made" sh -c "! xl domid g1 && ! xl pci-assignable-list | grep -q 05.0"

# --- in use
check "bulkhead run" bulkhead run /root/g1.cfg --device $BDF
stub=$(bulkhead status --json | jq -r '.stubs[0].name')
guest_config g4
refused "a second attach of the same BDF" "g1|in use|already" bulkhead run /root/g4.cfg --device $BDF
refused "the same guest again" "g1|already|exists" bulkhead run /root/g1.cfg --device 0000:00:06.0
refused "a second stub of the same name" "$stub|already|exists" xl create -q /etc/bulkhead/stubdom.cfg "name=\"$stub\""
check "the guest works all the same" network_up g1
equal "pings lost of 5" 0 "$(pings_lost g1 5)"

# --- a stub without work, then with nonsense in its nodes
log=$(stub_log idle)
check "a stub without work" xl create -q /etc/bulkhead/stubdom.cfg 'name="idle"'
check "it says so" wait-log "$log" "no guest" 10
idle=$(xl domid idle)
home=/local/domain/$idle
second=/local/domain/0/backend/bulkhead/$idle/0
xenstore-write $second/guest 77x $second/num_devs many $second/state 1 $home/device/bulkhead/0/state 1
xenstore-chmod -r $second n0 r$idle
xenstore-chmod -r $home/device/bulkhead/0 n$idle r0
xenstore-write $home/backend/pci/77/0/num_devs many $home/backend/pci/77/0/state 1
xenstore-chmod -r $home/backend/pci/77/0 n$idle
# What it says depends on which node it meets first; it names the node in any case.
check "nonsense in its nodes is named" wait-log "$log" "(ERROR|WARN).*(/local/domain/|second hop|backend/pci)" 10
check "it lives" sh -c "xl list idle | awk 'NR == 2 { exit \$5 ~ /c/ }'"
check "it ends when asked" xl shutdown -w idle
check "what is left of it goes" xl destroy idle

# --- a guest that writes nonsense into its own frontend nodes while it is connected
home=/local/domain/$(xl domid g1)/device/pci/0
for node in pci-op-ref event-channel magic; do
    in_guest g1 "xenstore-write device/pci/0/$node garbage"
done
check "the connection stands" in_guest g1 "lspci -n | grep -q 8086:10d3"
# From Linux's side nothing is stranger than a state out of nowhere.
in_guest g1 "xenstore-write device/pci/0/state 99"
sleep 1
check "the stub lives" xl domid "$stub"
check "the service lives" sh -c "bulkhead status --json | jq -e .service.running"
check "bulkhead destroy" bulkhead destroy g1
check "nothing is left" sh -c "bulkhead status --json | jq -e '.stubs == []' && [ \$(xl list | wc -l) = 2 ]"
success
