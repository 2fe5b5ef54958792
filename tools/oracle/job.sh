# SPDX-License-Identifier: GPL-2.0-only
# Runs inside the recording machine: each mode of /lab/modes, each scenario of /lab/scn. A line of /lab/modes is
# TAG:KVM PARAMETERS:KVM-AMD PARAMETERS, with ',' between several.
T=/sys/kernel/tracing
OUT=/tmp/out
mkdir -p $OUT
for m in $(cat /mod/first); do insmod /mod/$m.ko; done
echo 0 > $T/tracing_on
echo counter > $T/trace_clock
echo 65536 > $T/buffer_size_kb
# Swap, and a group whose memory a scenario can reclaim (host sh echo 2M > /cg/lab/memory.reclaim).
insmod /mod/brd.ko rd_nr=1 rd_size=65536 && mknod /dev/ram0 b 1 0 2>/dev/null
mkswap /dev/ram0 > /dev/null && swapon /dev/ram0
mkdir -p /cg && mount -t cgroup2 c /cg && echo +memory > /cg/cgroup.subtree_control && mkdir -p /cg/lab
while IFS=: read -r tag kvm amd; do
    insmod /mod/kvm.ko $(echo $kvm | tr , ' ')
    insmod /mod/kvm-amd.ko $(echo $amd | tr , ' ') || continue
    echo 0 > $T/events/enable
    echo 1 > $T/events/kvmmmu/enable
    echo 1 > $T/events/kvm/enable
    # The root that the CPU was last given: where the VMM finds the live tables.
    mkdir -p $T/instances/lab
    echo 64 > $T/instances/lab/buffer_size_kb
    echo "p:lab/pgd svm_load_mmu_pgd root=%si:x64 level=%dx:s32" > $T/dynamic_events
    echo 1 > $T/instances/lab/events/lab/pgd/enable
    for file in /lab/scn/*.scn; do
        name=$(basename $file .scn)
        echo > $T/trace
        echo > $T/instances/lab/trace
        (echo 0 > /cg/lab/cgroup.procs; exec /lab/labvmm $file > $OUT/$name.$tag.res 2>&1)
        rc=$?
        echo 0 > $T/tracing_on
        cp $T/trace $OUT/$name.$tag.trace
        echo "ORACLE: $name $tag rc=$rc lines $(wc -l < $OUT/$name.$tag.trace)"
        gzip -n -1 $OUT/$name.$tag.trace
        /lab/put $OUT/$name.$tag.trace.gz $OUT/$name.$tag.res
        rm $OUT/$name.$tag.*
    done
    echo 0 > $T/instances/lab/events/lab/pgd/enable
    rmdir $T/instances/lab
    echo > $T/dynamic_events
    rmmod kvm_amd
    rmmod kvm
done < /lab/modes
