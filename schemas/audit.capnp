@0xd5c1a7e0b3f24607;
# The audit log, served by the audit service. It can be read and verified, never changed.

using Cap = import "capability.capnp";
using Kernel = import "kernel.capnp";

struct Entry {
  index  @0 :UInt64;          # From 0, without gaps.
  record @1 :Kernel.Record;
  hash   @2 :Data;            # BLAKE3 of the previous hash and this entry.
}

struct Checkpoint {
  # A statement that the log had exactly these entries. `signature` is Ed25519 by `key` over
  # "distos-checkpoint-v1" ‖ size (8 bytes, little endian) ‖ timeMs (likewise) ‖ head.
  size      @0 :UInt64;
  head      @1 :Data;
  timeMs    @2 :UInt64;
  key       @3 :Data;
  signature @4 :Data;
}

struct Verification {
  ok         @0 :Bool;
  checkpoint @1 :Checkpoint;  # Of what was verified.
  badIndex   @2 :UInt64;      # First entry that is wrong, if not ok.
  badFile    @3 :Text;
  badOffset  @4 :UInt64;      # Byte in that file at which the bad frame starts.
  reason     @5 :Text;
}

interface Log extends(Cap.Capability) {
  entries @0 (from :UInt64, max :UInt32) -> (entries :List(Entry), size :UInt64);
  # Needs "read". At most 1,024.
  verify @1 () -> (verification :Verification);
  # Needs "read". Reads the stored log from its first to its last byte, checks every frame, hash
  # and signature, and returns a new signed checkpoint.
  checkpoint @2 () -> (checkpoint :Checkpoint);
  # Needs "read".
  flush @3 (upTo :UInt64) -> ();
  # Needs "read". Returns when the outbox's records up to this journal sequence number are in the log
  # (0: all that there are at the time of the call).
}
