@0xd5c1a7e0b3f24605;
# Running one tenant's WASI programs, served by that tenant's executor to the scheduler alone.

using Cap = import "capability.capnp";
using Sched = import "scheduler.capnp";

struct Segment {
  offset @0 :UInt64;
  len    @1 :UInt64;
}

interface Executor extends(Cap.Capability) {
  load @0 (job :UInt64, module :Data, input :Cap.Gift, output :Cap.Gift, secrets :List(Sched.JobSecret)) -> ();
  # Needs "run". Compiles a module for a job and withdraws the job's gifts, each where it waits: over
  # the executor's own edge to a vat of this node, or at a vat of another one, in its own name. Fails:
  # "malformed" (not a WASI command), "not-found" (a gift), "unavailable" or "unauthenticated" (another
  # node).

  run @1 (job :UInt64, task :UInt32, args :List(Text), stdinFromOutput :Bool,
          stdin :List(Segment), outputOffset :UInt64, limits :Sched.Limits)
      -> (outputBytes :UInt32, fuel :UInt64, micros :UInt64);
  # Needs "run". Runs one task, with new readings of the job's secrets. Its sandbox holds a read-only capability to exactly its stdin
  # segments (of the input, or of the output when `stdinFromOutput`: a reduce) and a write
  # capability to its own output page. Fails: "limit-exceeded", "program-failed", "revoked", …

  unload @2 (job :UInt64) -> ();
  # Needs "run". Ends the job's tasks and drops its capabilities.
}
