@0xd5c1a7e0b3f24606;
# Evidence about this node, served by the attestation service.

using Cap = import "capability.capnp";

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
}
