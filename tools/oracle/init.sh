#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-only
# First program of the recording machine: mounts, then the job, then power off.
/bin/busybox --install -s /bin 2>/dev/null
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing
mount -t tmpfs tmp /tmp
sh /lab/job.sh
echo "ORACLE: done rc=$?"
poweroff -f
