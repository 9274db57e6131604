#!/usr/bin/env python3
"""A DistOS client in Python, with pycapnp: what a tenant does with its capability file.

Restores the capability "regions", makes a region, writes, reads, checks every page by BLAKE3,
attenuates to one page read-only, is denied what that does not allow, and is refused once somebody
revokes the region's certificate. Prints what it does line by line. The exit code is 0 only if
everything was as expected: 1 if something was not, 2 for wrong usage.
"""

import argparse
import asyncio
import os
import re
import sys
from pathlib import Path

import blake3
import capnp
import nacl.signing

SCHEMAS = Path(__file__).resolve().parents[3] / "schemas"
capability = capnp.load(str(SCHEMAS / "capability.capnp"))
memory = capnp.load(str(SCHEMAS / "memory.capnp"))

PAGE = memory.pageBytes
PAGES = 4
RIGHT_READ = 0x1  # docs/faults.md lists the bits.


class Unexpected(Exception):
    """Something is not as it should be."""


class Fault(Exception):
    """A refusal by DistOS (docs/faults.md): its name and fields are stable, its text is for people."""

    def __init__(self, name, fields, text):
        super().__init__(text if text.startswith(name) else f"{name}: {text}")
        self.name, self.fields = name, fields

    @staticmethod
    def of(error):
        """The fault in an exception's reason; None if it is no refusal of DistOS."""
        found = re.search(r"distos:([a-z-]+)((?:;[a-z]+=[^;:]*)*): ([^\n]*)", str(error))
        if found is None:
            return None
        name, fields, text = found.groups()
        return Fault(name, dict(field.split("=", 1) for field in fields.split(";")[1:]), text)


async def call(promise):
    """Waits for an answer. A refusal becomes a Fault."""
    try:
        return await promise
    except capnp.KjException as error:
        raise Fault.of(error) or error from None


async def refused(what, promise, name, **fields):
    """Waits for an answer that must be the fault `name` with these fields."""
    try:
        await call(promise)
    except Fault as fault:
        if fault.name != name or fields.items() - fault.fields.items():
            raise Unexpected(f"{what}: expected {name} {fields}, got {fault} {fault.fields}") from None
        print(f"✓ {what}: {fault}")
    else:
        raise Unexpected(f"{what}: expected {name}, and it was allowed")


def check(what, holds):
    """Something that this program can tell for itself."""
    if not holds:
        raise Unexpected(f"not so: {what}")
    print(f"✓ {what}")


class CapFile:
    """A capability file (docs/foreign.md): the node, where its sockets were, and chains by name."""

    HEADER = "distos capability file v1"

    def __init__(self, node, sockets, entries):
        self.node, self.sockets, self.entries = node, sockets, entries

    @staticmethod
    def parse(text):
        lines = text.splitlines()
        while lines and not lines[-1].strip():
            lines.pop()
        if not lines or lines[0] != CapFile.HEADER:
            raise Unexpected("this is no capability file of version 1")
        above = "".join(line + "\n" for line in lines[:-1])
        if lines[-1].rstrip() != "check: " + blake3.blake3(above.encode()).hexdigest():
            raise Unexpected("the capability file is damaged: its check does not match")
        node, sockets, digits, name = None, None, {}, None
        for line in lines[1:-1]:
            if name is None and line.startswith("node: "):
                node = bytes.fromhex(line.removeprefix("node: "))
            elif name is None and line.startswith("sockets: "):
                sockets = line.removeprefix("sockets: ")
            elif line.startswith("["):
                name = line.strip("[]")
                digits[name] = ""
            else:
                digits[name] += line
        return CapFile(node, sockets, {name: bytes.fromhex(hexes) for name, hexes in digits.items()})

    def text(self):
        lines = [self.HEADER, "node: " + self.node.hex(), "sockets: " + self.sockets]
        for name, chain in self.entries.items():
            hexes = chain.hex()
            lines += [f"[{name}]"] + [hexes[at : at + 76] for at in range(0, len(hexes), 76)]
        above = "".join(line + "\n" for line in lines)
        return above + "check: " + blake3.blake3(above.encode()).hexdigest() + "\n"


def read_secret(path):
    """The signing key of a secret key file: a header line, then 64 hexadecimal digits."""
    header, digits = path.read_text(encoding="utf-8").splitlines()[:2]
    if not header.startswith("distos holder secret v1"):
        raise Unexpected(f"{path} is no secret key file of version 1")
    return nacl.signing.SigningKey(bytes.fromhex(digits))


def home(chain):
    """The node and the vat where a chain's object lives, as its first link says."""
    node, name_length = chain[3:35], chain[39]
    return node, chain[40 : 40 + name_length].decode()


async def restore(door, chain, secret):
    """Turns a chain into a live capability, proving possession of the holder's key.

    Returns the promise of it: calls can be sent through it before the answer is here.
    """
    challenge = await call(door.challenge())
    # Signed only for the node and the vat that the chain names: a stranger at the socket gets no
    # signature that it could use elsewhere.
    if (challenge.node, challenge.vat) != home(chain):
        raise Unexpected("this socket belongs to another vat or node than the capability")
    message = (
        b"distos-restore-v1"
        + challenge.nonce
        + challenge.node
        + challenge.vat.encode()
        + blake3.blake3(chain).digest()
    )
    return door.restore(chain=chain, signature=secret.sign(message).signature)


async def client(args):
    file = CapFile.parse(args.cap.read_text(encoding="utf-8"))
    secret = read_secret(args.key or args.cap.with_suffix(".key"))
    print(f"{args.cap}: {', '.join(file.entries)} at node {file.node.hex()[:16]}…")

    if "regions" not in file.entries:
        raise Unexpected(f"{args.cap} holds no [regions]: a tenant's own file does")
    chain = file.entries["regions"]
    node, vat = home(chain)
    socket = (args.sockets or Path(file.sockets)) / f"{vat}.sock"
    stream = await capnp.AsyncIoStream.create_unix_connection(str(socket))
    door = capnp.TwoPartyClient(stream).bootstrap().cast_as(capability.Door)
    print(f"connected to {socket}")

    # Two calls through a capability that is still on its way: one round trip for all three.
    restored = await restore(door, chain, secret)
    regions = restored.cap.cast_as(memory.Regions)
    described, making = regions.describe(), regions.create(args.name, PAGES * PAGE, False)
    await call(restored)
    info = (await call(described)).info
    what = f"restored [regions], which is of kind {info.kind} at vat {info.vat}"
    check(what, (info.kind, info.vat) == ("regions", vat))
    made = await call(making)
    region = made.region
    print(f"made the region {args.name} of {PAGES * PAGE} bytes")

    pages = [os.urandom(PAGE) for _ in range(PAGES)]
    written = [region.write(at * PAGE, page) for at, page in enumerate(pages)]
    for write in written:
        await call(write)
    print(f"wrote {PAGES} pages of random bytes, all under way at once")

    content = (await call(region.read(0, PAGES * PAGE))).data
    hashes = [blake3.blake3(page).digest() for page in pages]
    read_hashes = [blake3.blake3(content[at * PAGE : (at + 1) * PAGE]).digest() for at in range(PAGES)]
    check("read it back: the BLAKE3 hash of every page is that of what was written", read_hashes == hashes)
    root = blake3.blake3(b"".join(hashes)).digest()
    info = (await call(region.info())).info
    check(f"the node's hash of the region is the one computed here: {root.hex()[:16]}…", info.root == root)

    # The same region once more, restored from the certificate that came with it; and a weaker
    # capability made from that, for this session: page 1 only, and only to read.
    held = (await call(await restore(door, made.chain, secret))).cap.cast_as(memory.Region)
    weaker = await call(held.attenuate(RIGHT_READ, {"rangeStart": PAGE, "rangeEnd": 2 * PAGE}))
    reader = weaker.cap.cast_as(memory.Region)
    page = (await call(reader.read(PAGE, PAGE))).data
    check("restored the region, attenuated that to reading page 1, and read it", blake3.blake3(page).digest() == hashes[1])
    await refused("write through it", reader.write(PAGE, b"mine"), "denied", missing="write")
    await refused(
        "read page 2 through it",
        reader.read(2 * PAGE, 100),
        "denied",
        missing="read",
        start=str(2 * PAGE),
        end=str(2 * PAGE + 100),
    )
    await refused("attenuate it to more", reader.attenuate(RIGHT_READ | 0x2), "denied", missing="write")

    saved = CapFile(node, str(socket.parent.absolute()), {"region": made.chain})
    args.out.write_text(saved.text(), encoding="utf-8")
    print(f"wrote the certificate to {args.out}")
    print(f"waiting: run `distos cap revoke {args.out} --as {args.cap}`, then press Enter", flush=True)
    await asyncio.to_thread(sys.stdin.readline)

    await refused("read page 1 through the attenuated one", reader.read(PAGE, PAGE), "revoked")
    await refused("read through the one it was made from", held.read(0, PAGE), "revoked")
    await refused("restore it again", await restore(door, made.chain, secret), "revoked")

    # The certificate is revoked, and not what `create` returned, from which the certificate was
    # issued: its maker can still erase the region.
    await call(region.drop())
    print(f"erased the region {args.name}")


async def main(args):
    try:
        async with capnp.kj_loop():
            await client(args)
    except (Unexpected, Fault, OSError, ValueError, capnp.KjException) as error:
        print(f"client.py: {error}", file=sys.stderr)
        return 1
    print("everything was as expected")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cap", type=Path, metavar="CAP", help="a tenant's capability file, such as red.cap")
    parser.add_argument("--key", type=Path, metavar="FILE", help="its secret key [default: CAP with the extension .key]")
    parser.add_argument("--sockets", type=Path, metavar="DIR", help="the node's sockets [default: where CAP says they are]")
    parser.add_argument("--name", default="from-python", metavar="NAME", help="the region to make [default: %(default)s]")
    parser.add_argument(
        "--out", type=Path, default=Path("from-python.cap"), metavar="FILE",
        help="where to write the capability to the region [default: %(default)s]",
    )
    sys.exit(asyncio.run(main(parser.parse_args())))
