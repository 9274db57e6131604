@0xd5c1a7e0b3f246f0;
# What the benchmark's vats serve. No node of a user has any of it.

using Cap = import "/capability.capnp";

interface Bare {
  # The peer of Null: the same method on bare Cap'n Proto.

  null @0 () -> ();
}

interface Null extends(Cap.Capability) {
  # An object behind a facet, whose method does nothing but be authorised.

  null @0 () -> ();
  # Needs "read": checked at dispatch, at commit and when the reply leaves.
}

struct Ended {
  # What one revocation took, in nanoseconds from the command.
  durable @0 :UInt64;      # Until it was durable and quiescent.
  refused @1 :UInt64;      # Until the first refusal of a descendant.
  descendants @2 :UInt64;
}

interface Tree extends(Cap.Capability) {
  # Makes and ends derivations at the vat that serves their object.

  grow @0 (descendants :UInt32) -> ();
  # A capability below this one, and so many below that. Needs "create".

  fell @1 () -> (ended :Ended);
  # Revokes what `grow` made last. Needs "create".

  mint @2 (count :UInt32) -> (nanos :List(UInt64));
  # That many durable capabilities to new objects, one after the other, and how long each took.
  # Needs "create".
}

interface Giver {
  # Somebody who has a Null of another node's, and passes it on.

  give @0 (receiver :Text) -> (proxied :Null, gift :Cap.Gift);
  # By way of the giver, and left at its home for `receiver`.
}
