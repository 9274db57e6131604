----------------------------- MODULE TraceData -----------------------------
(***************************************************************************)
(* An example by hand, with the times of a software TPM. A run's generator *)
(* overwrites it in a copy of this folder. Nonces are numbered in the      *)
(* order of their challenges, over all nodes.                              *)
(***************************************************************************)
LOCAL INSTANCE Naturals

Traces == << <<
  [event |-> "start",     at |-> 1000, node |-> "7f3a", bound |-> 60000, grace |-> 20000],
  [event |-> "boot",      at |-> 1000, node |-> "7f3a", resets |-> 17, good |-> TRUE],
  [event |-> "challenge", at |-> 1003, node |-> "7f3a", nonce |-> 1],
  [event |-> "verdict",   at |-> 1021, node |-> "7f3a", nonce |-> 1, good |-> TRUE, epoch |-> 0, resets |-> 17],
  [event |-> "begin",     at |-> 1050, node |-> "7f3a", drain |-> 30000],
  [event |-> "place",     at |-> 9450, node |-> "7f3a", fresh_until |-> 61003, job |-> 1, task |-> 0],
  [event |-> "place",     at |-> 9450, node |-> "7f3a", fresh_until |-> 61003, job |-> 1, task |-> 1],
  [event |-> "end",       at |-> 9900, node |-> "7f3a", job |-> 1, task |-> 1, done |-> TRUE],
  \* Half the bound has passed: evidence is renewed, but the TPM is silent at first.
  [event |-> "challenge", at |-> 31010, node |-> "7f3a", nonce |-> 2],
  [event |-> "no_answer", at |-> 41012, node |-> "7f3a"],
  [event |-> "place",     at |-> 42200, node |-> "7f3a", fresh_until |-> 61003, job |-> 1, task |-> 1],
  [event |-> "end",       at |-> 42900, node |-> "7f3a", job |-> 1, task |-> 0, done |-> FALSE],
  [event |-> "challenge", at |-> 46015, node |-> "7f3a", nonce |-> 3],
  [event |-> "verdict",   at |-> 46040, node |-> "7f3a", nonce |-> 3, good |-> TRUE, epoch |-> 0, resets |-> 17],
  \* The scheduler had read the verdict before it was replaced.
  [event |-> "place",     at |-> 46041, node |-> "7f3a", fresh_until |-> 61003, job |-> 2, task |-> 0],
  [event |-> "place",     at |-> 61003, node |-> "7f3a", fresh_until |-> 106015, job |-> 2, task |-> 1],
  \* kill -9 of the kernel: the service and the software TPM start anew, and nothing of what ran is left.
  [event |-> "start",     at |-> 70000, node |-> "7f3a", bound |-> 60000, grace |-> 20000],
  [event |-> "boot",      at |-> 70000, node |-> "7f3a", resets |-> 18, good |-> TRUE],
  [event |-> "challenge", at |-> 70004, node |-> "7f3a", nonce |-> 4],
  [event |-> "verdict",   at |-> 70022, node |-> "7f3a", nonce |-> 4, good |-> TRUE, epoch |-> 0, resets |-> 18],
  [event |-> "begin",     at |-> 70040, node |-> "7f3a", drain |-> 30000],
  [event |-> "place",     at |-> 70500, node |-> "7f3a", fresh_until |-> 130004, job |-> 1, task |-> 0],
  \* A register is extended behind the service's back, which the next quote shows: what runs is ended.
  [event |-> "tamper",    at |-> 80000, node |-> "7f3a"],
  [event |-> "place",     at |-> 80200, node |-> "7f3a", fresh_until |-> 130004, job |-> 1, task |-> 1],
  [event |-> "challenge", at |-> 100010, node |-> "7f3a", nonce |-> 5],
  [event |-> "verdict",   at |-> 100030, node |-> "7f3a", nonce |-> 5, good |-> FALSE, epoch |-> 1, resets |-> 18],
  [event |-> "end",       at |-> 100110, node |-> "7f3a", job |-> 1, task |-> 0, done |-> FALSE],
  [event |-> "fence",     at |-> 100130, node |-> "7f3a", epoch |-> 1],
  [event |-> "end",       at |-> 100131, node |-> "7f3a", job |-> 1, task |-> 1, done |-> FALSE],
  \* It is reset. Later its TPM falls silent for good, and what runs then is drained, and is ended at last.
  [event |-> "boot",      at |-> 110000, node |-> "7f3a", resets |-> 19, good |-> TRUE],
  [event |-> "challenge", at |-> 110010, node |-> "7f3a", nonce |-> 6],
  [event |-> "verdict",   at |-> 110030, node |-> "7f3a", nonce |-> 6, good |-> TRUE, epoch |-> 1, resets |-> 19],
  [event |-> "place",     at |-> 169000, node |-> "7f3a", fresh_until |-> 170010, job |-> 3, task |-> 0],
  [event |-> "place",     at |-> 169000, node |-> "7f3a", fresh_until |-> 170010, job |-> 4, task |-> 0],
  [event |-> "end",       at |-> 199000, node |-> "7f3a", job |-> 4, task |-> 0, done |-> TRUE],
  [event |-> "fence",     at |-> 220200, node |-> "7f3a", epoch |-> 1]
>> >>
=============================================================================
