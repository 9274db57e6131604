@0xd5c1a7e0b3f24606;
# Evidence about this node, served by the attestation service.

using Cap = import "capability.capnp";

enum Standing {
  # How far a node's evidence reaches, from best to worst.
  fresh   @0;   # Good and young enough: it gets work.
  stale   @1;   # Good, but too old: no new placements.
  expired @2;   # For so long that what waits is ended, and what runs is drained: it has the scheduler's `drain_ms` to end by
                # itself, and is ended then. Also where there never was any evidence.
  failed  @3;   # The last evidence contradicts what is demanded: all that it holds ends at once.
}

struct Checked {
  name    @0 :Text;
  outcome @1 :Text;   # "passed", "not checked" or "FAILED".
  why     @2 :Text;   # Why not passed, or empty.
}

struct Submod {
  # What was found of one device of a node, or of one log.
  name   @0 :Text;
  kind   @1 :Text;             # "tpm", "eventlog", "ima", "nvidia-gpu", ...
  tier   @2 :Text;             # "affirming", "warning", "contraindicated", "none".
  reason @3 :Text;
  checks @4 :List(Checked);
}

struct Verdict {
  freshUntilMs @0 :UInt64;   # Unix milliseconds; 0 if there is no good evidence.
  good         @1 :Bool;     # Integrity: the last evidence matched. Told apart from freshness (A2).
  reason       @2 :Text;     # Why not good, or empty.
  tpm          @3 :Text;     # "hardware TPM /dev/tpmrm0" or "software TPM (swtpm): proves the protocol, not the machine".
  hardware     @4 :Bool;
  takenMs      @5 :UInt64;   # When the last good quote was taken.
  pcrDigest    @6 :Data;     # SHA-256 over the selected PCRs.
  pcrs         @7 :List(UInt8);
  resetCount   @8 :UInt32;
  restartCount @9 :UInt32;
  quoteMicros  @10 :UInt64;  # How long the TPM took.
  akName       @11 :Data;    # The enrolled attestation key's TPM name.
  node         @12 :Data;    # Of which node.
  standing     @13 :Standing;
  epoch        @14 :UInt64;  # How often its evidence has turned bad. Never goes back.
  expiresMs    @15 :UInt64;  # When it is expired unless there is newer evidence; Unix milliseconds.
  policy       @16 :Text;    # The policy by which it was appraised, NAME@VERSION; empty without one.
  tier         @17 :Text;    # What that says of the whole.
  submods      @18 :List(Submod);
  ek           @19 :Data;    # The name of the endorsement key by which the node is known; empty if it is not.
}

struct File {
  name  @0 :Text;
  bytes @1 :Data;
}

interface Attestation extends(Cap.Capability) {
  status @0 () -> (verdict :Verdict);
  # Needs "read".
  attest @1 () -> (verdict :Verdict);
  # Needs "attest". Takes and appraises a new quote now. Fails: "unavailable" (no TPM answers).
  identity @2 () -> (ek :Data, ak :Data, ekCertificate :Data);
  # Needs "attest". The TPM's endorsement key and the key with which it quotes (TPMT_PUBLIC), and the certificate (DER)
  # that the TPM's maker has left in it for the first, which nobody has verified; empty if there is none.
  # Fails: as `present`.
  present @3 (inviter :Data, key :Data, nonce :Data) -> (request :Text);
  # Needs "admin": whoever holds this may join as this node, with any key. What this node presents to a node that is to
  # invite it (JSON): what its TPM says with that one's nonce (32 bytes), for the key of this node's network service.
  # Fails: as `attest`, and "unavailable" (two others wait for the TPM).
  open @4 (sealed :Text) -> (plain :Text);
  # Needs "admin". Opens an invitation that was sealed to this node's TPM. Fails: "unauthenticated" (it is for
  # another TPM, or was changed), "malformed", and as `present`.
  watch @5 (seen :UInt64) -> (revision :UInt64, verdict :Verdict);
  # Needs "read". As `status`, once standing or epoch differ from what they were at revision `seen` (0 is none), and after
  # ten seconds in any case: whoever acts on a node's standing hears of it at once.
  verdicts @6 () -> (verdicts :List(Verdict));
  # Needs "list". What this node's verifier says of the nodes that it verifies, and of this one.
  result @7 (node :Data) -> (result :Text, key :Data);
  # Needs "read". A signed attestation result (EAR, a JWT) for a node; empty is this one. `key` is what signed it (P-256,
  # compressed), which is made anew whenever this service starts: whoever relies on results asks for it here. Fails: "stale-attestation" (its
  # evidence is not fresh), "unavailable" (the policy by which it was appraised is signed by nobody), "not-found".
  govern @8 (policy :Data, signature :Text) -> ();
  # Needs "admin". Durable. Goes by this policy from now on, in the place of the image's. Fails: "unauthenticated" (none of
  # the image's `policy_signers` signed it, or its version goes back), "malformed" (what is wrong with it).
  anchor @9 (files :List(File)) -> ();
  # Needs "admin". Durable. Holds evidence against these roots, lists of revoked certificates, OCSP responses and reference
  # values from now on, in the place of those before: at most 512, of 8 MiB, named as in a folder of trust ("tpm/root.pem").
  # Fails: "malformed" (which one, and why).
  enrol @10 (node :Data, ek :Data) -> ();
  # Needs "admin". Durable. Of this node the TPM with this endorsement key (its name, 34 bytes) is taken, whatever was taken before; with an
  # empty name, any TPM that the policy puts up with, once.

  # `seal` and `unseal` are for a service that an edge leads here from, which alone opens what was sealed for it. The
  # secret is 32 bytes that this service makes, and travels in a parcel (docs/foreign.md) to the X25519 key `to`, which is
  # made for one call. It never stands in a message in the clear.

  seal @11 (to :Data) -> (blob :Data, parcel :Data);
  # Needs "create". Makes a secret and seals it to this node's TPM, as registers 0 to 7 and 11 (the image's) are now. `blob`
  # is public, of at most 2048 bytes, and kept by the caller. Fails: "denied" (the caller is no vat of this node),
  # "malformed" (`to`), and as `present`.
  unseal @12 (blob :Data, to :Data) -> (parcel :Data);
  # Needs "create". The secret of a blob. Fails: as `seal`, and "stale-attestation" (the registers are not what they were),
  # "unauthenticated" (it was sealed by another TPM, or this one before it was cleared, or for another vat), "malformed".
}
