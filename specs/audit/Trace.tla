------------------------------- MODULE Trace -------------------------------
(***************************************************************************)
(* Checks the trace of an audit service that really ran against Audit.     *)
(*                                                                         *)
(* A trace holds the events of one data directory in the order in which    *)
(* they were written, over any number of processes. Each event is one      *)
(* step of the model, with the values that the event gives. How a process  *)
(* ended is not in the trace: in front of an "open", it is whatever end    *)
(* explains the log that was found. That the kernel had journaled what the *)
(* service pulled is taken from the trace, too: the run begins in a state  *)
(* in which it has, which the model reaches by as many Reports and syncs.  *)
(*                                                                         *)
(* A trace is a behaviour of the model if Accepted holds.                  *)
(***************************************************************************)
EXTENDS Audit, TraceData, TLC

VARIABLES
    trace,  \* the trace: several are checked at once, each for itself
    i       \* the next event

tvars == <<vars, trace, i>>

Event == Traces[trace][i]
AtEnd == i > Len(Traces[trace])

(* The bound comes from the traces. *)
SeqsOf(t) ==
    {t[n].last : n \in {m \in 1..Len(t) : t[m].event = "append"}}
    \cup {t[n].last_seq : n \in {m \in 1..Len(t) : t[m].event = "open"}}
TraceMaxSeq ==
    LET seqs == {0} \cup UNION {SeqsOf(Traces[n]) : n \in 1..Len(Traces)}
    IN  CHOOSE n \in seqs : \A m \in seqs : m <= n

(* In a run without gaps the last entry has the highest number. Audit looks at
   all entries, which takes long for a long log. *)
TraceLastSeq(entries) == IF entries = <<>> THEN 0 ELSE entries[Len(entries)].seq

(* A trace may begin with a log that an earlier one has left. *)
Before ==
    LET t == Traces[trace] IN
    IF Len(t) > 0 /\ t[1].event = "open" /\ t[1].size <= TraceMaxSeq THEN t[1].size ELSE 0

TInit ==
    /\ trace \in 1..Len(Traces)
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

Is(name) == ~AtEnd /\ Event.event = name

Step ==
    /\ i' = i + 1
    /\ UNCHANGED trace
    /\ PrintT(<<"step", trace, i>>)  \* what stands behind the last one is refused

(* The batch: its first and last journal records, and how many entries the
   log has with it. *)
TAppend ==
    /\ Is("append")
    /\ Event.first = LastSeq(Committed) + 1
    /\ Pull(Event.last)
    /\ Len(log') = Event.size
    /\ Step

TSynced == Is("synced") /\ SyncSegment /\ Len(log) = Event.size /\ Step
THead   == Is("head") /\ WriteHead /\ size' = Event.size /\ Step
TFailed == Is("failed") /\ AppendFails /\ log' = log /\ size = Event.size /\ Step
TSettle == Is("settle") /\ Settle /\ size = Event.size /\ Step
TAck    == Is("ack") /\ Ack /\ LastSeq(Committed) = Event.up_to /\ Step

TCheckpoint ==
    /\ Is("checkpoint")
    /\ size = Event.size
    /\ \E h \in Holders : TakeCheckpoint(h)
    /\ Step

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
    /\ UNCHANGED <<trace, i>>

TBoot ==
    /\ Is("open")
    /\ Boot
    /\ trimmed' = trimmed
    /\ UNCHANGED <<trace, i>>

TOpen ==
    /\ Is("open")
    /\ Open
    /\ audit' = "open"
    /\ size' = Event.size
    /\ LastSeq(log') = Event.last_seq
    /\ Step

TNext ==
    \/ TAppend \/ TSynced \/ THead \/ TFailed \/ TSettle \/ TAck \/ TCheckpoint
    \/ TEnd \/ TBoot \/ TOpen

TSpec == TInit /\ [][TNext]_tvars /\ WF_tvars(TNext)

(* Every event of every trace is a step of the model. *)
Accepted == <>AtEnd
=============================================================================
