----------------------------- MODULE TraceData -----------------------------
(* An example of what a run generates: a service that is killed while it
   writes a batch, and again between the batch and its acknowledgement. *)
EXTENDS Naturals, Sequences

Traces == << <<
    [event |-> "open", size |-> 0, last_seq |-> 0],
    [event |-> "append", first |-> 1, last |-> 5, size |-> 5],
    [event |-> "synced", size |-> 5],
    [event |-> "head", size |-> 5],
    [event |-> "checkpoint", size |-> 5],
    [event |-> "settle", size |-> 5],
    [event |-> "ack", up_to |-> 5],
    [event |-> "append", first |-> 6, last |-> 9, size |-> 9],
    [event |-> "open", size |-> 5, last_seq |-> 5],
    [event |-> "settle", size |-> 5],
    [event |-> "ack", up_to |-> 5],
    [event |-> "append", first |-> 6, last |-> 11, size |-> 11],
    [event |-> "failed", size |-> 5],
    [event |-> "append", first |-> 6, last |-> 12, size |-> 12],
    [event |-> "synced", size |-> 12],
    [event |-> "head", size |-> 12],
    [event |-> "checkpoint", size |-> 12],
    [event |-> "open", size |-> 12, last_seq |-> 12],
    [event |-> "settle", size |-> 12],
    [event |-> "ack", up_to |-> 12],
    [event |-> "checkpoint", size |-> 12]
>> >>
=============================================================================
