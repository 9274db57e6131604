@0xd5c1a7e0b3f24608;
# GPUs and leases on them, served by the GPU service.

using Cap = import "capability.capnp";

enum GpuState { clean @0; leased @1; cleaning @2; quarantined @3; }

struct Gpu {
  index       @0 :UInt32;
  name        @1 :Text;
  uuid        @2 :Text;
  memoryBytes @3 :UInt64;
  state       @4 :GpuState;
  tenant      @5 :UInt32;    # Who holds it, if leased; visible to the operator and that tenant.
  untilMs     @6 :UInt64;
}

struct GpuEvidence {
  index   @0 :UInt32;
  uuid    @1 :Text;
  arch    @2 :Text;          # "HOPPER", "BLACKWELL", as the evidence of NVIDIA's tools names it.
  chain   @3 :Data;          # The device's certificates (PEM), its own first.
  report  @4 :Data;          # The SPDM request and the measurements that answer it.
  fault   @5 :Text;          # Why there is none, or empty.
  mode    @6 :Text;          # What the driver says of confidential computing: "on", "off", "devtools"; empty if nothing.
}

interface Gpus extends(Cap.Capability) {
  list @0 () -> (driver :Text, gpus :List(Gpu));
  # Needs "list". `driver` is "no GPU: …" on a machine without one.
  acquire @1 (index :UInt32, ttlMs :UInt32) -> (lease :Lease, device :Gpu);
  # Needs "lease". Holds one GPU for at most a minute at a time; only a clean one is handed out (G1).
  # Fails: "not-found" (no such GPU), "unavailable" (leased or being cleaned).
  evidence @2 (nonces :List(Data)) -> (driver :Text, gpus :List(GpuEvidence));
  # Needs "attest". Has each GPU sign what it measured, with a nonce of its own: as many as there are GPUs, each 32 bytes, all
  # different. Nothing of it is verified here. Fails: "malformed" (another number of nonces, or one twice).
}

interface Lease extends(Cap.Capability) {
  renew @0 (ttlMs :UInt32) -> (untilMs :UInt64);
  # Needs "lease". "revoked" once the lease has ended.
  release @1 () -> ();
  # Needs "lease". The GPU is scrubbed and verified before anybody else gets it.
}
