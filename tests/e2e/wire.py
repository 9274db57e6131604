"""Carries Ethernet frames between interfaces as a bad switch does: late, and not all of them.

usage: wire.py DELAY_MS LOSS_PERCENT SEED INTERFACE...

It says `ready`, to each line of its standard input how many frames it has carried and lost, and ends with that. For Linux kernels that cannot do so themselves (netem).
"""

import heapq
import random
import select
import socket
import sys
import time

ALL = 3  # ETH_P_ALL
OUTGOING = 4  # PACKET_OUTGOING
LONGEST = 65536
# Beyond it frames are lost, as where a queue is full.
QUEUE = 4096


def without_checksum(frame):
    """A UDP datagram whose sender left the checksum to its card, which is none: IPv4 lets it be 0."""
    ipv4 = frame[12:14] == b"\x08\x00" and len(frame) >= 34
    if not ipv4 or frame[23] != 17:
        return frame
    at = 14 + 4 * (frame[14] & 15) + 6
    return frame[:at] + b"\0\0" + frame[at + 2 :]


def main():
    delay, loss, seed = float(sys.argv[1]) / 1000, float(sys.argv[2]) / 100, int(sys.argv[3])
    chance = random.Random(seed)
    ends = []
    for name in sys.argv[4:]:
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL))
        end.bind((name, 0))
        ends.append(end)
    waiting, number, lost = [], 0, 0
    print("ready", flush=True)
    while True:
        rest = max(0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([sys.stdin, *ends], [], [], rest)
        if sys.stdin in readable:
            if not sys.stdin.readline():
                return
            print(number, lost, flush=True)
        now = time.monotonic()
        for end in readable:
            if end is sys.stdin:
                continue
            frame, address = end.recvfrom(LONGEST)
            if address[2] == OUTGOING:
                continue
            if chance.random() < loss or len(waiting) >= QUEUE:
                lost += 1
                continue
            number += 1
            heapq.heappush(waiting, (now + delay, number, end, without_checksum(frame)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, source, frame = heapq.heappop(waiting)
            for end in ends:
                try:
                    if end is not source:
                        end.send(frame)
                except OSError:
                    pass  # that cable is cut, or the frame too long for it


main()
