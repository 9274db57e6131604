@0xd5c1a7e0b3f2460b;
# Secrets, served by the secret broker.
#
# Values travel in parcels (docs/foreign.md, "Parcels"): HPKE, sealed to one key for one purpose, so that whoever passes
# a call on reads none. A parcel to the broker is sealed to the key of its card (`Secrets.card`); a parcel from it to
# the `key` of a `Recipient`. Whoever sends a parcel or gets one is a holder with a key of its own: the edge of a vat has
# none, and every call that takes or gives one fails with "denied" there. One secret can be given to a vat
# (`Capability.gift`): what it reads is sealed to whatever key it asks for, over the connection by which it took that.
#
# The broker starts sealed, without the root key that everything it keeps is encrypted under. If that is sealed to the
# node's TPM (`Secrets.init`, `Secrets.bind`), the broker has the TPM open it, which takes a moment. Else, and if what the
# node has booted is not what it was then, it stays sealed until enough shares are given (`Secrets.unseal`). Until it is open, `put`, `get`, `renew` and `rotate` fail with "unavailable"; so they do while what was
# ended could not be recorded (L2). What uses no key works while it is sealed: names and numbers of leases are told
# (`open`, `list`, `info`), and leases and secrets can be ended (`release`, `endLeases`, `endCap`, `endNode`, `drop`). While
# nothing can be recorded these take effect, and fail with "unavailable" all the same; after 4096 of them they take none.

using Cap = import "capability.capnp";

struct Recipient {
  # To whom an answer is sealed. Made for one call: whoever gets the holder's lasting key later opens no recording.
  key       @0 :Data;   # X25519, 32 bytes.
  signature @1 :Data;   # Empty from whoever took the capability as a gift: it has no key.
  # Ed25519, by the capability's holder, over "distos-parcel-request-v1" ‖ node (32 bytes) ‖ the object's number (8 bytes,
  # little endian) ‖ key ‖ the vat's name. Fails: "unauthenticated".
}

enum SecretKind {
  fixed   @0;  # A value that was put.
  ed25519 @1;  # Each reading makes a key pair: PKCS#8 (PEM).
  x509    @2;  # Each reading makes a key pair and a certificate for it, which ends with the lease: key, certificate and
               # the authority's certificate, PEM. The authority's key was made here and leaves never.
  account @3;  # Each reading makes an account at something else, by `Accounts`, which is removed when the lease ends: its
               # name, a line feed, its password, a line feed.
}

interface Accounts {
  # What makes accounts somewhere, a database say. It is a reference that whoever puts a secret gives to the broker, and is
  # all the authority that the broker has there. It is lost when the connection ends over which it was given, and when the
  # broker does: until it is given again (`Secret.attach`) nobody can read the secret, and no account is removed.

  create @0 (name :Text, password :Text) -> ();
  # Makes an account. `name` is unlike any before. Whatever it fails with is told to the reader as "unavailable".

  remove @1 (name :Text) -> ();
  # Removes it, and ends what goes on by it. Succeeds if there is none. Is called again until it succeeds.
}

struct SecretInfo {
  name       @0 :Text;
  kind       @1 :SecretKind;
  attested   @2 :Bool;     # Given out only while this node's evidence is good and fresh, and only to holders on it.
  object     @3 :UInt64;
  version    @4 :UInt32;   # The newest.
  overlapping @5 :UInt32;  # How many older ones can still be read.
  leases     @6 :UInt64;   # Made and not yet cleared away: those that have ended are cleared later.
  leaseMs    @7 :UInt64;   # For how long a lease runs at most.
}

struct BrokerStatus {
  initialised @0 :Bool;
  sealed      @1 :Bool;
  threshold   @2 :UInt8;    # How many shares open it.
  shares      @3 :UInt8;    # How many were made.
  given       @4 :UInt8;    # How many are given of those that it needs.
  secrets     @5 :UInt64;
  leases      @6 :UInt64;   # As in `SecretInfo`, of all tenants.
  failing     @7 :Text;     # Why nothing can be recorded, or empty.
  tpm         @8 :Bool;     # The root key is sealed to this node's TPM, which opens the broker at each start.
  why         @9 :Text;     # While it is sealed: why the TPM did not open it, or who sealed it; or empty.
}

interface Secrets extends(Cap.Capability) {
  # A tenant's place to keep secrets. What is made here ends when it is revoked.

  status @0 () -> (status :BrokerStatus);
  # Needs "admin".

  card @1 () -> (card :Data);
  # Needs no right. Whose key parcels to the broker are sealed to, said by its node (docs/foreign.md has the format of
  # cards).

  init @2 (threshold :UInt8, shares :UInt8, to :Recipient, tpm :Bool) -> (parcels :List(Data));
  # Needs "admin". Makes the root key, splits it (Shamir, over GF(256)) and returns the shares, each in a parcel. They
  # are kept nowhere: this answer is all there is, and whoever has lost it calls again. The broker is open afterwards. With
  # `tpm`, this node's TPM opens it from then on, as `bind` says, and there may be no shares (both 0): then nothing opens it
  # once that TPM does not.
  # Fails: "exists" (a secret was put under the root key that there is); "malformed" (2 ≤ threshold ≤ shares ≤ 32, or
  # both 1); and with `tpm` as `bind`.

  unseal @3 (share :Data) -> (status :BrokerStatus);
  # Needs "admin". A parcel with one share. With the last that it needs, the broker is open; if they do not make the root
  # key, all are forgotten. Fails: "malformed" (a share of another broker, or mistyped), "unauthenticated" (together they
  # are not the root key). Empty: has the TPM open it, also after `seal`; fails with what the TPM refused it for
  # ("stale-attestation", "unauthenticated"), "not-found" (it is sealed to no TPM).

  seal @4 () -> ();
  # Needs "admin". Forgets the root key, and shares that were given. Durable: the TPM opens it again only when it is asked to
  # (`unseal`), also after a restart. If it cannot be recorded, they are forgotten all the same ("unavailable").

  put @5 (name :Text, kind :SecretKind, value :Data, attested :Bool, leaseMs :UInt64, accounts :Accounts)
      -> (secret :Secret, chain :Data);
  # Needs "create". `value` is a parcel, or empty unless `kind` is `fixed`; `accounts` is for `account` alone. `leaseMs` is for how long a lease on it runs at
  # most: 1 s to 30 days; 0: an hour. `chain` is the sturdy capability to it for the caller's key, as that to a region
  # is. Durable before it returns. Fails: "exists", "over-quota" (bytes; of the tenant's secrets together), "malformed" (name is
  # 1 to 64 of a-z A-Z 0-9 . _ - /; value is 1 byte to 64 KiB).

  open @6 (name :Text) -> (secret :Secret);
  # Needs "list". A secret of the caller's tenant by its name; "not-found" for anybody else's. It allows what this
  # capability allows of read, write and drop, and ends when this reference is dropped.

  list @7 () -> (secrets :List(SecretInfo));
  # Needs "list". The caller's tenant's.

  endNode @8 (node :Data) -> (leases :UInt64, micros :UInt64);
  # Needs "admin". Ends every lease, of all tenants, of holders on this node (32 bytes), and of holders of whom the broker
  # knows no node, as they may be there: one step and one durable record, however many. `leases` counts them, with what
  # had ended and was not yet cleared away. From when it returns none is renewed, and nothing is given out under one; an
  # answer that had been made may still be on its way. Holders on that node get no leases from then on
  # ("stale-attestation"), until `admitNode`. A holder of whom no node is known (an agent, or one whose calls are end to
  # end) is not kept from reading again, wherever it is: for that its capability is revoked, or the secret is `attested`.

  admitNode @9 (node :Data) -> ();
  # Needs "admin". Takes back that holders on this node get nothing. What was ended stays so.

  endCap @10 (capId :UInt64) -> (leases :UInt64);
  # Needs "drop". Ends all leases that were made by this capability, or one restored from the same chain, on all secrets of
  # the caller's tenant. One step and one record, as `endNode`.

  bind @11 () -> ();
  # Needs "admin", and that the broker is open. Durable. From then on this node's TPM opens it at each start, for as long as
  # its registers 0 to 7 and 11 are as they are now: the same firmware, its settings, boot loader and image, as far as these
  # say. What was bound before opens it no more. Fails: "unavailable" (no TPM answers), "denied" (the image gives the broker
  # no "create" at the attestation service).
}

interface Secret extends(Cap.Capability) {
  # One secret.

  get @0 (to :Recipient, version :UInt32, ttlMs :UInt64)
      -> (parcel :Data, version :UInt32, lease :UInt64, untilMs :UInt64);
  # Needs "read". The newest version (0), or an older one while it can be read. The lease runs for `ttlMs` (0: as long as
  # it may) and is durable before this returns; its holder is the caller's key and capability. Revoking that capability
  # keeps its holder from reading and renewing, and lets its leases, and their accounts, run out: `Secrets.endCap` ends
  # them. Fails: "not-found" (no such
  # version), "stale-attestation", "expired" (what was to be read ended meanwhile), "unavailable" (the tenant has as many leases as it may, or
  # the caller by this capability: an eighth of the tenant's). A parcel to whoever took the capability as a gift has 32 zero
  # bytes for its holder's key.

  renew @1 (lease :UInt64, ttlMs :UInt64) -> (untilMs :UInt64);
  # Needs "read". Of the caller's own lease. A lease on an older version runs no longer than that can be read. Fails:
  # "revoked" (it has ended, or is not the caller's), "malformed" (a certificate is not made longer: read again).

  release @2 (lease :UInt64) -> ();
  # Needs "read". Ends the caller's own lease.

  rotate @3 (value :Data, overlapMs :UInt64) -> (version :UInt32);
  # Needs "write". A new version, which is the newest from when this returns; of `x509` a new authority. The version before
  # can be read until its last lease has ended, and at most for `overlapMs` (at most 30 days). `value` as in `put`;
  # its parcel says which version it becomes, which is one more than the newest (`info`).
  # Fails: "malformed" (`ed25519` and `account` have nothing to rotate), "unavailable" (too many versions overlap).

  endLeases @4 () -> (leases :UInt64);
  # Needs "drop". Ends all leases on this secret; its older versions cannot be read any more. One step and one record, as
  # `Secrets.endNode`.

  drop @5 () -> ();
  # Needs "drop". Ends its leases and every capability to it. The key that its versions are encrypted under, itself
  # encrypted, stands in the log until that is rewritten: within two minutes or so, but only once it has grown if the
  # broker ends before. What the file system keeps of the old file is not erased.
  # Fails: "unavailable" (accounts are not removed yet: `endLeases`, and wait).

  info @6 () -> (info :SecretInfo);
  # Needs "read".

  attach @7 (accounts :Accounts) -> ();
  # Needs "write". For an `account`: where its accounts are made and removed from now on. Fails: "malformed" for others.

  watch @8 (lease :UInt64) -> (untilMs :UInt64);
  # Needs "read". Of the caller's own lease: returns after ten seconds if it holds, with until when it runs. Fails as soon as
  # it does not: "revoked" (it has ended, or is not the caller's).
}
