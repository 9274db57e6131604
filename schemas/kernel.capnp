@0xd5c1a7e0b3f24602;
# Between the kernel and the vats of its own node. No tenant ever holds any of these.

using Cap = import "capability.capnp";

struct Ancestor {
  # One step of a lineage, root first.
  capId      @0 :UInt64;
  quotaBytes @1 :UInt64 = 0xffffffffffffffff;
  quotaTasks @2 :UInt32 = 0xffffffff;
  ratePerS   @3 :UInt32 = 0xffffffff;
}

struct Grant {
  # A capability as its home vat sees it.
  slot    @0 :Cap.Slot;
  capId   @1 :UInt64;
  kind    @2 :UInt16;
  object  @3 :UInt64;
  rights  @4 :UInt64;
  caveats @5 :Cap.Caveats;
  tenant  @6 :UInt32;
  holder  @7 :Data;             # Ed25519 public key; empty for a vat of this node.
  lineage @8 :List(Ancestor);   # Root first, this capability last.
}

struct LiveObject {
  kind   @0 :UInt16;
  object @1 :UInt64;
  tenant @2 :UInt32;
}

struct Event {
  # Something a service did that an auditor must be able to see. Bounded: text fields are cut to
  # 256 bytes by the kernel.
  kind   @0 :Text;     # "denial", "placement", "attestation", "lease", "limit", …
  tenant @1 :UInt32;
  capId  @2 :UInt64;   # The capability in whose name; 0 if none.
  detail @3 :Text;
}

interface Kernel {
  # What each vat holds of the kernel. The kernel knows which vat it talks to; every method acts
  # on that vat's own objects only ("denied" otherwise), so a compromised vat can betray only them.
  # Increases of authority return after their journal record is durable (L2), decreases act first.

  ready @0 (protections :List(Protection)) -> ();
  # The vat has locked itself down, holds its edges and serves. Reports what it could verify of
  # its own sandbox; the kernel corrects what it sees to be untrue from outside.

  mint @1 (parent :Cap.Slot, hasParent :Bool, kind :UInt16, object :UInt64, rights :UInt64,
           caveats :Cap.Caveats, session :UInt64) -> (grant :Grant);
  # The first capability to a new object of the calling vat. With a parent, it is charged to the
  # parent's tenant and holder and ends when the parent does. With a `session` (not 0), it is
  # another capability to an object that exists, and ends with that session.

  derive @2 (parent :Cap.Slot, rights :UInt64, caveats :Cap.Caveats, session :UInt64) -> (grant :Grant);
  # A session-bound attenuation. Stays below a durable ancestor, so its record may lag.

  redeem @3 (chain :Data, session :UInt64) -> (grant :Grant);
  # Verifies a certificate chain, whose holder the vat has already authenticated, and returns a
  # session-bound capability under its last link. Idempotent for each link.

  deposit @4 (parent :Cap.Slot, receiver :Text, rights :UInt64, caveats :Cap.Caveats) -> (ticket :Data);
  # Records a gift.

  withdraw @5 (ticket :Data, receiver :Text, session :UInt64) -> (grant :Grant);
  # Hands over a gift, once, to the vat that it was meant for.

  persist @6 (slot :Cap.Slot, rights :UInt64, caveats :Cap.Caveats) -> (chain :Data);
  # Signs a root certificate for the holder of `slot`.

  revoke @7 (slot :Cap.Slot) -> (micros :UInt64, descendants :UInt64);
  revokeLink @8 (under :Cap.Slot, link :Data, expiresMs :UInt64) -> (micros :UInt64, descendants :UInt64);
  # Return after quiescence and after the record is durable.

  revokeObject @9 (kind :UInt16, object :UInt64) -> (micros :UInt64, descendants :UInt64);
  # Every capability to one object of the calling vat: what dropping an object starts with.

  endSession @10 (session :UInt64) -> ();
  # A connection closed.

  objects @11 () -> (objects :List(LiveObject));
  # Every object of the calling vat that a live durable capability names: what a restarted service
  # reconciles its state with.

  report @12 (event :Event) -> ();
  # Puts an event into the audit outbox. Each vat has a bounded rate; beyond it events are
  # counted, and the count is journaled.

  outbox @13 () -> (outbox :Outbox);
  spawner @14 () -> (spawner :Spawner);
  control @15 () -> (control :Control);
  # Extra powers; "denied" unless the image grants them to the calling vat.

  release @16 (slots :List(Cap.Slot)) -> ();
  # The vat dropped these session-bound capabilities: they end, with all below them. Nobody waits
  # for quiescence, because nobody holds them any more.

  certify @17 (key :Data) -> (untilMs :UInt64, signature :Data);
  # That this X25519 key is the calling vat's, signed with the key that signs sturdy capabilities, until `untilMs`.
  # Holders, who have the node's key in their capabilities, encrypt to it through whatever passes their
  # connections on. The signature is of these bytes one after the other: "distos-channel-v1", the node, `untilMs`
  # (8 bytes, little-endian), `key`, and the vat's name.
}

struct Protection {
  name     @0 :Text;   # "own uid", "no_new_privs", "seccomp", "landlock", "namespaces", "rlimits", …
  enforced @1 :Bool;
  detail   @2 :Text;   # What was verified, or why it is not in force.
}

interface Vat {
  # What the kernel holds of each vat: the bootstrap of the vat's side of the kernel connection.

  drain @0 () -> ();
  # Take no new work; return when what runs has ended and all acknowledged state is durable.

  ping @1 () -> ();
  # Answers if the vat's loop runs.
}

struct Record {
  # One record of the journal as the auditor sees it.
  seq     @0 :UInt64;
  timeMs  @1 :UInt64;
  kind    @2 :Text;     # "mint", "derive", "redeem", "revoke", "tenant", "boot", "image", or an Event's kind.
  vat     @3 :Text;     # Whose object, or who reported.
  tenant  @4 :UInt32;
  holder  @5 :Data;
  capId   @6 :UInt64;
  lineage @7 :List(UInt64);   # CapIds, root first.
  detail  @8 :Text;
}

interface Outbox {
  # The journal as the audit service reads it.
  pull @0 (after :UInt64, max :UInt32) -> (records :List(Record));
  # Durable records after that sequence number, oldest first. Waits up to a second when there is
  # nothing; `max` is capped at 1,024. Fails: "corrupt" if this journal never had `after`.
  ack @1 (upTo :UInt64) -> ();
  # Everything up to this sequence number is in the audit log, durably: the journal may trim it.
}

interface Spawner {
  # Starts vats from the image's templates.
  start @0 (template :Text, tenant :UInt32) -> (vat :Text);
  # Idempotent per template and tenant. The new vat's edges arrive at its peers' control sockets.
  # Fails: "not-found" (template or tenant), "unavailable" (draining).
  stop @1 (vat :Text) -> ();
  # Ends one instance. Fails: "not-found".
}

struct Tenant {
  id         @0 :UInt32;
  name       @1 :Text;
  holder     @2 :Data;
  slotQuota  @3 :UInt32;
  slotsUsed  @4 :UInt32;
}

struct VatStatus {
  name        @0 :Text;
  program     @1 :Text;
  pid         @2 :UInt32;       # 0 if not running.
  restarts    @3 :UInt32;
  upMs        @4 :UInt64;
  rssBytes    @5 :UInt64;
  protections @6 :List(Protection);
  socket      @7 :Text;         # Where holders connect; empty if they cannot.
}

struct TreeNode {
  capId   @0 :UInt64;
  parent  @1 :UInt64;   # 0 for a root.
  vat     @2 :Text;
  kind    @3 :UInt16;
  object  @4 :UInt64;
  rights  @5 :UInt64;
  caveats @6 :Cap.Caveats;
  tenant  @7 :UInt32;
  holder  @8 :Data;
  link    @9 :Data;     # Hash of its certificate; empty if it has none.
  durable @10 :Bool;
}

struct KernelStatus {
  node           @0 :Data;
  image          @1 :Text;
  imageHash      @2 :Data;
  epoch          @3 :UInt32;
  slotsUsed      @4 :UInt32;
  slotsCapacity  @5 :UInt32;
  journalSeq     @6 :UInt64;
  journalAcked   @7 :UInt64;
  journalBytes   @8 :UInt64;
  draining       @9 :Bool;
  vats           @10 :List(VatStatus);
  imageSigner    @11 :Data;     # Ed25519 public key that signed the image; empty: it is unsigned.
}

interface Control {
  # The operator's levers, held by the node service alone.
  status @0 () -> (status :KernelStatus);
  addTenant @1 (name :Text, holder :Data, slotQuota :UInt32) -> (id :UInt32);
  # Durable before it returns. Fails: "exists" (name or key).
  tenants @2 () -> (tenants :List(Tenant));
  tree @3 (tenant :UInt32, all :Bool, max :UInt32) -> (nodes :List(TreeNode), truncated :Bool);
  drain @4 () -> ();
  # No new work on this node; returns when every vat has drained.
  shutdown @5 (now :Bool) -> ();
  # Ends every vat and the kernel. With `now`, without draining.
}
