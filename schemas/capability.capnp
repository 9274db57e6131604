@0xd5c1a7e0b3f24601;
# The base of every interface that DistOS serves, and the door of every vat.
#
# Authority: a reference to a Capability is itself the authority; nothing else is checked against
# the caller. Revocation: every method of every interface that extends Capability fails with the
# fault "revoked" from the moment at which `revoke` of the capability or of any ancestor returned.
# Failure: exceptions whose reason holds a fault, `distos:NAME;KEY=VALUE;…: TEXT`, behind whatever
# the RPC library puts before it (docs/faults.md lists the names and their fields).
# docs/foreign.md tells how to write a client, and has the formats of keys, files and chains.

struct Caveats {
  # Conditions. The default of each, all ones or false, means "no condition".
  expiresMs  @0 :UInt64 = 0xffffffffffffffff;  # Unix milliseconds at which the capability ends.
  rangeStart @1 :UInt64 = 0;                   # First byte of the object that it reaches.
  rangeEnd   @2 :UInt64 = 0xffffffffffffffff;  # One past the last byte.
  quotaBytes @3 :UInt64 = 0xffffffffffffffff;  # Bytes held through it and its descendants together.
  quotaTasks @4 :UInt32 = 0xffffffff;          # Tasks queued or running, likewise together.
  ratePerS   @5 :UInt32 = 0xffffffff;          # Calls a second, likewise together.
  endToEnd   @6 :Bool;                         # Restored only where the connection is encrypted from holder to home.
}

struct Slot {
  # Where a capability lives in the node's table while the kernel runs.
  index      @0 :UInt32;
  generation @1 :UInt64;
}

struct Info {
  # What a holder may know about its own capability.
  kind    @0 :Text;     # Such as "region".
  object  @1 :UInt64;   # The object's number within its home vat.
  vat     @2 :Text;     # Its home.
  rights  @3 :UInt64;   # Bit set; docs/faults.md lists the bits.
  caveats @4 :Caveats;
  tenant  @5 :UInt32;
  depth   @6 :UInt8;    # 0 for a root.
  capId   @7 :UInt64;   # Lasting identity, as in audit records.
}

struct Gift {
  # A capability that waits for its receiver, and where.
  ticket @0 :Data;      # As `gift` returned it.
  node   @1 :Data;      # The node at which it waits; empty: the receiver's own.
  vat    @2 :Text;      # The vat of that node: the home of the object.
}

interface Capability {
  describe @0 () -> (info :Info);
  # Needs no right.

  attenuate @1 (rights :UInt64, caveats :Caveats) -> (cap :Capability);
  # A weaker capability to the same object, of the same interface. It belongs to this session and
  # dies with the connection. Of each caveat the narrower counts, this one's or the one asked for;
  # rights are never left out in silence. Fails: "denied" naming the rights that this one lacks;
  # "too-deep"; "over-quota" (slots).

  revoke @2 () -> (micros :UInt64, descendants :UInt64, elsewhereMs :UInt32);
  # Ends this capability and all that was derived from it, by anyone. One that was restored from a
  # chain can't be restored again, and what others restored from the same chain ends with it. When
  # it returns, no use of any of them takes effect. `micros` is the time from the command to
  # quiescence; `descendants` counts what ended with it. Whoever holds a lease on any of them is told, and
  # this waits for a quarter of a second at most until all have said that they know; `elsewhereMs` is within
  # which time the leases of the others are over, also of those whom an earlier run of this vat lent to: 0 if
  # there can be none. Revoking what has ended already says nothing of that. Needs no right: whoever holds authority
  # may give it up.

  revokeLink @3 (link :Data, expiresMs :UInt64)
      -> (micros :UInt64, descendants :UInt64, elsewhereMs :UInt32);
  # Ends the delegation whose link has this hash (32 bytes; BLAKE3 in its key derivation mode,
  # docs/foreign.md) and which was made from this capability or a descendant of it. If nobody has
  # redeemed it yet, it is remembered as revoked until `expiresMs` and can never be redeemed. Leases end
  # as with `revoke`.
  # Fails: "not-found" if it exists but does not descend from this capability.

  gift @4 (receiver :Text, rights :UInt64, caveats :Caveats) -> (ticket :Data);
  # Deposits, here at the object's home, a one-shot capability for `receiver` and returns the ticket
  # with which that one, and nobody else, can withdraw it within 30 seconds. `receiver` is a vat of this
  # node by its name, or whoever connects over the network with an SVID, by the path of its SPIFFE id:
  # "node/N/service/S" or "tenant/T/agent/A". What it withdraws is a child of this capability: revoking
  # this one ends it. If this one was restored from a chain, what was given outlives this connection, and
  # ends when the chain's last link is revoked or expires; otherwise it ends with this capability's
  # session.

  persist @5 (rights :UInt64, caveats :Caveats) -> (chain :Data);
  # A sturdy capability (a certificate chain of one link, signed by this node's kernel) to this
  # object for this capability's own holder. Durable before it returns. Fails: "denied" if the
  # holder has no key (a vat's edge).

  lend @6 () -> (line :List(UInt64), termMs :UInt32, lastsMs :UInt64, asOf :UInt64, token :UInt64);
  # A lease, for whoever does something in this capability's name for which it is not asked each time: a program
  # that runs, a page that is mapped. It runs for `termMs` from when this was sent, is renewed with all
  # others of this connection (`Lessor.renew`), and ends with the connection's last term. `line` names this
  # capability and what it was derived from, the root first, by numbers that mean something on this connection
  # only: the lease ends as soon as any of them is said to have ended. `lastsMs` is after how long the
  # capability expires; all ones: never. `token` is that of the lessor over whose connection it came: if it
  # is another, the capability came over another connection, and so will what is told of its end. An answer
  # whose `asOf` is less than the last that was told is older than what was told: it may be about what has
  # ended, and is to be asked for again. Needs no right. Fails: "denied" (there is no lessor on this
  # connection), "unavailable" (too much is lent).
}

interface Lessee {
  # Whoever holds leases of one vat's, as that vat knows it.

  ended @0 (links :List(UInt64), asOf :UInt64) -> ();
  # These have ended, and with them every lease on what is below them. Returns once no use by any of those
  # begins any more, which the home counts on; what has begun ends as soon as it can. At most 4,096 at a time.
  # An answer to `lend` with a smaller `asOf` is not to be believed any more.
}

interface Lessor {
  # What a vat has lent over one connection. It carries no authority: leases come of capabilities.

  renew @0 (released :List(UInt64)) -> (ended :List(UInt64), asOf :UInt64, termMs :UInt32);
  # Gives leases back, each by the last number of its line, as often as it stands here; and has another term of
  # all others, from when this was sent, but for those below what has `ended`. Whoever hears no answer
  # within its term may use nothing any more. Answered ten times a second at most. Fails, when it has taken back
  # what was given: "unavailable" (more than 4,096 have ended, which are told first); "denied" (another lessor
  # has come since).
}

interface Door {
  # What a connection to a vat's socket starts with. It carries no authority. Until something is
  # restored, a message longer than 64 KiB ends the connection: do not send one ahead of the answer.

  challenge @0 () -> (nonce :Data, vat :Text, node :Data);
  # 32 random bytes, good for one `restore` on this connection.

  restore @1 (chain :Data, signature :Data) -> (cap :Capability);
  # Turns a sturdy capability into a live one of the interface that its object has: cast `cap` to
  # it. `signature` is the Ed25519 signature, by the key of the chain's last holder, over these
  # bytes one after the other, with nothing between them:
  #
  #   "distos-restore-v1"   17 bytes of ASCII
  #   nonce                 32 bytes, as `challenge` returned them
  #   node                  32 bytes, likewise
  #   vat                   the name's bytes, likewise, with no terminator
  #   BLAKE3 of `chain`     32 bytes, BLAKE3 in its plain mode
  #
  # Sign only if `node` and `vat` are those that the chain names: otherwise a stranger at the socket
  # could use the signature elsewhere. The capability lasts as long as the connection. Fails:
  # "unauthenticated" (signature, or no challenge since the last `restore`), "malformed", "denied",
  # "expired", "revoked", "not-found" (another vat or node), "unavailable" (after 1,024 on one
  # connection).

  withdraw @2 (ticket :Data) -> (cap :Capability);
  # Takes a gift that was left for whoever connected: who that is, the handshake has shown. Works once.
  # Fails: "not-found" for a ticket that is unknown, used, late or meant for somebody else, and at a Unix
  # socket, where nobody has shown who they are; "unavailable" as `restore` does.

  lessor @3 (lessee :Lessee) -> (lessor :Lessor, token :UInt64);
  # Before anything is lent over this connection, `lessee` says who is told when it ends. Fails: "denied" once
  # something is lent; "unavailable" while whoever was named before has not answered. Over QUIC it can be said on a
  # bidirectional stream of its own, so that nothing is in its way: the client begins one with the 16 bytes
  # "distos-leases-v1" once it has shown a capability, and finds there a Door that has this method alone. There is one at a
  # time, none where calls are encrypted end to end, and the connection ends with it.

  present @4 (chain :Data, signature :Data) -> (cap :Capability);
  # As `restore`, without a challenge: over a connection between nodes, whose handshake gave its two ends a secret that
  # nobody else has. So nothing has to be waited for: what is called on the promise goes out with it, if it is no longer
  # than 64 KiB. `signature` is over:
  #
  #   "distos-present-v1"   17 bytes of ASCII
  #   binding               32 bytes: the exporter of TLS (RFC 8446, section 7.5) with the label
  #                         "EXPORTER-distos-present" and an empty context
  #   node                  32 bytes, as the chain names it
  #   vat                   the name's bytes, likewise, with no terminator
  #   BLAKE3 of `chain`     32 bytes, BLAKE3 in its plain mode
  #
  # Fails: as `restore`, and "unauthenticated" where no handshake has bound anything: at a Unix socket, and where what
  # is said is encrypted end to end.
}

interface Edge {
  # What a vat finds at the other end of an edge that the image gave it.

  root @0 () -> (cap :Capability);
  # The capability that the image grants over this edge.

  withdraw @1 (ticket :Data) -> (cap :Capability);
  # Takes a gift that was left for the vat at this end. Works once. Fails: "not-found" for a
  # ticket that is unknown, used, late or meant for somebody else.

  lessor @2 (lessee :Lessee) -> (lessor :Lessor, token :UInt64);
  # As at a door.
}
