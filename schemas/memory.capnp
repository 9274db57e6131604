@0xd5c1a7e0b3f24603;
# Regions of memory in pages of 64 KiB, served by the memory service.

using Cap = import "capability.capnp";

const pageBytes :UInt32 = 65536;
const maxCallBytes :UInt32 = 1048576;   # The most that one read or write moves.

struct RegionInfo {
  name     @0 :Text;
  bytes    @1 :UInt64;   # Length as created: reads and writes beyond it are "malformed".
  durable  @2 :Bool;
  object   @3 :UInt64;
  root     @4 :Data;     # BLAKE3 over the BLAKE3 hashes of all pages, in order. A page is hashed in
                         # full: one never written, and what the last one has too much, as zeros.
  writtenPages @5 :UInt64;
}

interface Regions extends(Cap.Capability) {
  # A tenant's place to make regions. Its quota counts the bytes of every region made through it
  # or through anything derived from it. Objects made here end when it is revoked.

  create @0 (name :Text, bytes :UInt64, volatile :Bool) -> (region :Region, chain :Data);
  # Needs "create". The region is all zeros, charged in full to the quota of this capability and
  # of every ancestor. Durable unless `volatile`: an acknowledged write survives any crash (M3).
  # `chain` is the sturdy capability to it for the caller's key; it is issued from `region`, so
  # revoking `region` ends both, and revoking what was restored from `chain` leaves `region`.
  # Fails: "over-quota", "exists", "malformed" (name is 1 to 64 of a-z A-Z 0-9 . _ -; bytes is 1 to
  # 2^40), "unavailable" (disk full).

  open @1 (name :Text, untilMs :UInt64) -> (region :Region);
  # Needs "list". A region of the caller's tenant by its name; "not-found" for anybody else's. It
  # allows what this capability allows of read, write and drop, and ends when this reference is dropped.
  # With `untilMs` (Unix milliseconds, at most a day from now; 0: without) it ends then instead, or with
  # what this capability was restored from: what is given from it (`Capability.gift`) outlives this
  # connection. It is durable, and takes a slot of the tenant's until it has ended; whoever needs it no more
  # revokes it.

  list @2 () -> (regions :List(RegionInfo));
  # Needs "list". The caller's tenant's regions, without their `root`.

  usage @3 () -> (usedBytes :UInt64, quotaBytes :UInt64);
  # What is charged here and what may be. Needs no right.
}

interface Region extends(Cap.Capability) {
  # One region, or a byte range of it.

  read @0 (offset :UInt64, len :UInt32) -> (data :Data);
  # Needs "read" over exactly these bytes. Each page is checked against its BLAKE3 hash before any
  # byte leaves (M2); "corrupt" names the page if it does not match, or if a volatile region's
  # content was lost in a restart. At most `maxCallBytes`.

  write @1 (offset :UInt64, data :Data) -> ();
  # Needs "write" over exactly these bytes. Returns when durable (M3); a crash before leaves each
  # page either old or new, never mixed. At most `maxCallBytes`. Of writes that touch a page in common,
  # those that came first take effect first; others may overtake one another.

  info @2 () -> (info :RegionInfo);
  # Needs "read".

  drop @3 () -> ();
  # Needs "drop". Revokes every capability to the region, destroys its key and frees its bytes.

  stream @4 (offset :UInt64, len :UInt64) -> (ticket :Data);
  # Needs "read" over exactly these bytes. For callers over the network: whoever begins another bidirectional QUIC stream
  # of a connection to this vat with the ticket, within ten seconds and once, is sent them there, page by page: a page's
  # length (4 bytes, big-endian, up to `pageBytes`), the BLAKE3 hash of its bytes (32) and the bytes; and after the last
  # 36 zeros. Whoever reads has to check each page: one in memory is sent as it is, with the hash that it had when it was
  # written. The stream is reset instead if a page cannot be read, the capability has ended, a page is not taken within
  # 15 seconds, or too many are under way (16 of a tenant); a call says with what. Each page is what it was when it was
  # read. Fails: "malformed" (no bytes), "unavailable" (too many streams are offered, or the node is draining).
}
