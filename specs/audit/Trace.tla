------------------------------- MODULE Trace -------------------------------
(***************************************************************************)
(* Checks the trace of an audit service that really ran against Audit.     *)
(*                                                                         *)
(* TraceData holds the events of one data directory in the order in which  *)
(* they were written, over any number of processes. Each event is one      *)
(* step of the model, with the values that the event gives. How a process  *)
(* ended is not in the trace: in front of an "open", it is whatever end    *)
(* explains the log that was found. That the kernel had journaled what the *)
(* service pulled is taken from the trace, too: the run begins in a state  *)
(* in which it has, which the model reaches by as many Reports and syncs.  *)
(*                                                                         *)
(* A trace is a behaviour of the model if Accepted holds.                  *)
(***************************************************************************)
EXTENDS Audit, TraceData

VARIABLE i   \* the next event

tvars == <<vars, i>>

Event == Trace[i]

(* The bound comes from the trace. *)
TraceMaxSeq ==
    LET appends == {Trace[n].last : n \in {m \in 1..Len(Trace) : Trace[m].event = "append"}}
        opens   == {Trace[n].last_seq : n \in {m \in 1..Len(Trace) : Trace[m].event = "open"}}
        seqs    == {0} \cup appends \cup opens
    IN  CHOOSE n \in seqs : \A m \in seqs : m <= n

(* In a run without gaps the last entry has the highest number. Audit looks at
   all entries, which takes long for a long log. *)
TraceLastSeq(entries) == IF entries = <<>> THEN 0 ELSE entries[Len(entries)].seq

(* A trace may begin with a log that an earlier one has left. *)
Before ==
    IF Len(Trace) > 0 /\ Trace[1].event = "open" /\ Trace[1].size <= TraceMaxSeq
    THEN Trace[1].size
    ELSE 0

TInit ==
    /\ kernel = "up"
    /\ journal = [n \in 1..TraceMaxSeq |-> Record("report", "none")]
    /\ jsynced = TraceMaxSeq
    /\ table = {}
    /\ derived = {}
    /\ told = {}
    /\ trimmed = 0
    /\ audit = "down"
    /\ step = "idle"
    /\ log = [n \in 1..Before |-> [seq |-> n, op |-> "report", cap |-> "none"]]
    /\ signed = Before
    /\ synced = Before
    /\ head = CheckpointOf(log)
    /\ head_synced = CheckpointOf(log)
    /\ size = Before
    /\ acked = 0
    /\ tampered = "no"
    /\ seen = [h \in Holders |-> <<>>]
    /\ i = 1

Is(name) ==
    /\ i <= Len(Trace)
    /\ Event.event = name

(* The batch: its first and last journal records, and how many entries the
   log has with it. *)
TAppend ==
    /\ Is("append")
    /\ Event.first = LastSeq(Committed) + 1
    /\ Pull(Event.last)
    /\ Len(log') = Event.size
    /\ i' = i + 1

TSynced == Is("synced") /\ SyncSegment /\ Len(log) = Event.size /\ i' = i + 1
THead   == Is("head") /\ WriteHead /\ size' = Event.size /\ i' = i + 1
TFailed == Is("failed") /\ AppendFails /\ log' = log /\ size = Event.size /\ i' = i + 1
TSettle == Is("settle") /\ Settle /\ size = Event.size /\ i' = i + 1
TAck    == Is("ack") /\ Ack /\ LastSeq(Committed) = Event.up_to /\ i' = i + 1

TCheckpoint ==
    /\ Is("checkpoint")
    /\ size = Event.size
    /\ \E h \in Holders : TakeCheckpoint(h)
    /\ i' = i + 1

(* An end that leaves what was found. Of all ends, a failure of the power can
   leave most, so it stands for the others. *)
TEnd ==
    /\ Is("open")
    /\ audit # "down"
    /\ PowerFails
    /\ journal' = journal
    /\ signed' = Event.size
    /\ Len(log') = Event.size
    /\ head' = head_synced
    /\ UNCHANGED i

TBoot ==
    /\ Is("open")
    /\ Boot
    /\ trimmed' = trimmed
    /\ UNCHANGED i

TOpen ==
    /\ Is("open")
    /\ Open
    /\ audit' = "open"
    /\ size' = Event.size
    /\ LastSeq(log') = Event.last_seq
    /\ i' = i + 1

TNext ==
    \/ TAppend \/ TSynced \/ THead \/ TFailed \/ TSettle \/ TAck \/ TCheckpoint
    \/ TEnd \/ TBoot \/ TOpen

TSpec == TInit /\ [][TNext]_tvars /\ WF_tvars(TNext)

(* Every event of the trace is a step of the model. *)
Accepted == <>(i > Len(Trace))
=============================================================================
