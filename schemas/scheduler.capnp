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
  outputName  @10 :Text;        # By what name whoever fetches the result finds the output region; empty, or 1 to 64 printable
                                # bytes. Nothing is done with it but telling it.
  secrets     @11 :List(JobSecret);   # At most 16.
}

struct JobSecret {
  # A secret that each task of a job draws for itself when it begins, under a lease of its own, and finds as a file that it can
  # only read in its directory /secrets. The task ends when that lease does, and the job with what was given here.
  file @0 :Text;       # Its name: 1 to 64 of a-z A-Z 0-9 . _ -, unlike that of the job's others.
  gift @1 :Cap.Gift;   # For the tenant's executor: "read" on the secret.
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
  deployed  @9 :Bool;        # By an order: it goes on without the connection over which that came.
  output    @10 :Text;       # The output region's name, if its owner has told it.
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

  list @3 () -> (jobs :List(JobStatus), drainedAtMs :UInt64);
  # Needs "list". The caller's tenant's jobs. Where the node's evidence has expired, nothing is placed, and what still runs
  # then is ended at `drainedAtMs` (Unix milliseconds), unless there is fresh evidence before; otherwise 0.

  deploy @4 (order :Data, signature :Data, spec :Data) -> (job :Job, id :UInt64);
  # Needs "run". As `submit`, and the job goes on when this connection has gone: by the capability in the
  # order, until that or any above it is revoked or expires. `spec` is a JobSpec as one message in Cap'n
  # Proto's standard framing, with nothing behind it. `order` is these bytes one after the other:
  #
  #   when it was made      8 bytes, little-endian: microseconds since the Unix epoch
  #   BLAKE3 of `spec`      32 bytes, BLAKE3 in its plain mode
  #   chain                 of a capability to this queue with "run", of the caller's tenant
  #
  # `signature` is by the key of that chain's last holder over "distos order 1" and a zero byte, followed
  # by `order`. It does not matter who brings it, unless the chain is end to end: then its own holder does,
  # over a connection that is, too.
  # An order has its effect once, also across restarts (N3). One that was refused has had none, and may be
  # brought again while it is new; one whose job has failed while it was loaded has had it. Answered once
  # the job's regions are withdrawn and its program is loaded, or the job has ended: whoever leaves before
  # has to ask with `list` what has become of it. What was given has to outlive this connection, too
  # (`Capability.gift`).
  # Fails, beside what `submit` fails with: "unauthenticated" (not signed so, another job's, another
  # tenant's, taken before, or made more than five minutes before or after now), "not-found" (for another
  # vat or node), "denied" (without "run"), "revoked", "expired", "unavailable" (128 orders of a tenant's in
  # five minutes were carried out, or four are being looked at; this node's clock was ahead; it could not be
  # noted, and a new order is to be made; the image gives the scheduler no directory; the job was cancelled).
  # A scheduler that is started again does not go on with a job, whose regions it never had: it is listed
  # as failed.

  job @5 (id :UInt64) -> (job :Job);
  # Needs "list". One of the caller's tenant's jobs, over whichever connection it was made; what may be done
  # with it goes by this capability, and it can be cancelled only if it was made by this capability's chain
  # or by what was made from that. Jobs that have ended are remembered as long as there is room. Fails:
  # "not-found" (forgotten, another tenant's, or never made).
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
