@0xd5c1a7e0b3f24604;
# Jobs and their placement, served by the scheduler.

using Cap = import "capability.capnp";

struct Limits {
  # What one task may use (S2). Zero means the default in brackets; each is capped by the node.
  fuel        @0 :UInt64;   # WASM instructions, roughly [50 billion].
  memoryBytes @1 :UInt64;   # Linear memory [64 MiB].
  outputBytes @2 :UInt32;   # stdout [64 KiB]; more ends the task. At most one page.
  wallMs      @3 :UInt32;   # Time [60,000].
}

struct JobSpec {
  name        @0 :Text;         # 1 to 64 printable bytes.
  module      @1 :Data;         # A WASI preview 1 command module, at most 8 MiB.
  mapArgs     @2 :List(Text);   # argv[1..] of each map task.
  reduceArgs  @3 :List(Text);   # argv[1..] of the reduce task; ignored without `reduce`.
  reduce      @4 :Bool;
  input       @5 :Cap.Gift;     # For the tenant's executor: "read" on the input.
  inputBytes  @6 :UInt64;
  output      @7 :Cap.Gift;     # For the executor: "read+write" on the output region. It needs one
                                # page for each map task and one for the reduce task.
  pagesPerTask @8 :UInt32;      # 0: the scheduler chooses.
  limits      @9 :Limits;
}

enum TaskState { queued @0; running @1; done @2; failed @3; cancelled @4; }

struct TaskStatus {
  index     @0 :UInt32;      # Map tasks in input order; the reduce task last.
  state     @1 :TaskState;
  start     @2 :UInt64;      # Input bytes.
  end       @3 :UInt64;
  outputBytes @4 :UInt32;    # How much of the task's output page is filled.
  fuel      @5 :UInt64;
  micros    @6 :UInt64;
  fault     @7 :Text;        # A fault line if failed.
}

struct JobStatus {
  id        @0 :UInt64;
  name      @1 :Text;
  state     @2 :TaskState;
  tasks     @3 :UInt32;
  done      @4 :UInt32;
  failed    @5 :UInt32;
  fault     @6 :Text;        # The first task's fault, if any failed.
  reduceIndex @7 :UInt32;    # The reduce task's output page; equal to `tasks` when there is none.
  outputBytes @8 :UInt32;    # Of the reduce task.
}

interface Queue extends(Cap.Capability) {
  # A tenant's place to run programs.

  executor @0 () -> (vat :Text);
  # Needs "run". The vat that will run the caller's tasks, started if need be: the receiver to
  # name in the gifts of a job's input and output; from another node, "node/N/service/VAT".

  plan @1 (inputBytes :UInt64, pagesPerTask :UInt32) -> (tasks :UInt32, pagesPerTask :UInt32);
  # Needs "run". How a job of this size will be cut, so that the output region can be made.

  submit @2 (spec :JobSpec) -> (job :Job);
  # Needs "run". Admission needs a policy decision, room in the tenant's task quota and fresh
  # attestation of this node (S1). Fails: "over-quota", "stale-attestation", "malformed",
  # "unavailable" (draining).

  list @3 () -> (jobs :List(JobStatus));
  # Needs "list". The caller's tenant's jobs.
}

interface Job extends(Cap.Capability) {
  status @0 () -> (status :JobStatus);
  # Needs "read".
  wait @1 (seenDone :UInt32) -> (status :JobStatus);
  # Needs "read". Returns as soon as more than `seenDone` tasks are done or the job has ended, or
  # after a second: for progress bars.
  tasks @2 () -> (tasks :List(TaskStatus));
  # Needs "read".
  cancel @3 () -> ();
  # Needs "cancel".
}
