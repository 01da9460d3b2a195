#!/bin/sh
# Cards that know nothing but their INTx line work with it, each in a guest of its own, also after rebinds and a hot replug.
#: suite bookworm
#: device e1000,netdev=n0,addr=5
#: device rtl8139,netdev=n1,addr=6
#: timeout 700
. /rig/scenarios/lib.sh

dmesg -c >/dev/null
device e1000 05.0 "intx 1" network e1000
device rtl8139 06.0 "intx 1" network 8139cp
equal "complaints in dom0" "" "$(complaints)"
success
