# usage: ksweep.sh ROUNDS rows... -- each env setting per line on stdin
cd /tmp/h/prio
