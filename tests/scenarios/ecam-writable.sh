#!/bin/sh
# A host on which Xen does not keep configuration pages read-only: dom0 says so, and the stub finds out by itself.
#: device edu,addr=6
#: suite bookworm
#: xen mmcfg=no,amd-fam10
. /rig/scenarios/lib.sh
BDF=0000:00:06.0

# All but COMMAND, in which dom0 itself turns the device's interrupt off.
registers() { lspci -xxx -s $BDF | sed -E '1d; s/^(00:( ..){4})( ..){2}/\1/'; }
registers >/tmp/before
guest_config g1
refused "by Xen's command line" "mmcfg=no,amd-fam10.*would be writable" bulkhead run /root/g1.cfg --device $BDF
refused "so does check" "mmcfg=no,amd-fam10" bulkhead check $BDF

# A host whose command line says nothing of it: there the stub's own test stands alone.
real=$(command -v xl)
mkdir /tmp/unaware
cat >/tmp/unaware/xl <<END
#!/bin/sh
[ "\$1" = info ] || exec $real "\$@"
$real "\$@" | sed 's/mmcfg=[^ ]*//'
END
chmod +x /tmp/unaware/xl
PATH=/tmp/unaware:$PATH
export PATH
# Nothing else stands in the way.
check "dom0 alone would give the device away" bulkhead check $BDF
refused "by the stub, with the device's name" "$BDF is refused: Xen leaves its config space .*writable" \
    bulkhead run /root/g1.cfg --device $BDF
check "it is in the stub's log" grep "$BDF is refused: Xen leaves its config space" "$(stub_log g1-bulkhead)"
check "no guest and no stub were left" sh -c "! xl domid g1 && ! xl domid g1-bulkhead"
within 10 "no device was kept" sh -c "bulkhead status --json | jq -e '.stubs == []'"
registers >/tmp/after
check "the rest of the device is as it was" diff /tmp/before /tmp/after
success
