------------------------------- MODULE Trace -------------------------------
(***************************************************************************)
(* Whether a run is a behaviour of Attestation. A trace holds the events   *)
(* of one verifier's run about one node, and of that node's scheduler if   *)
(* it goes by this verifier, in the order of their times, which are        *)
(* milliseconds.                                                           *)
(*                                                                         *)
(* At every event at most one step is possible, so a run is a behaviour    *)
(* exactly if every behaviour of TSpec reaches its end. README lists the   *)
(* events, their fields and where the code has them.                       *)
(***************************************************************************)
EXTENDS Attestation, Sequences, TraceData, TLC

VARIABLES
  trace,  \* the trace: several are checked at once, each for itself
  i       \* the next event

tvars == <<vars, trace, i>>

AtEnd == i > Len(Traces[trace])

\* What the traces say of the nodes and of how long what may last, which is the same in all.
AllEvents   == UNION {{Traces[t][n] : n \in 1..Len(Traces[t])} : t \in 1..Len(Traces)}
TraceNodes  == {e.node : e \in AllEvents}
TraceBounds == {e.bound : e \in {e \in AllEvents : e.event = "start"}}
TraceBound  == CHOOSE b \in TraceBounds : TRUE
ASSUME TraceBounds = {TraceBound}
TraceGraces == {e.grace : e \in {e \in AllEvents : e.event = "start"}}
TraceGrace  == CHOOSE g \in TraceGraces : TRUE
ASSUME TraceGraces = {TraceGrace}
\* Where nobody tells of work there is none.
TraceDrains == {e.drain : e \in {e \in AllEvents : e.event = "begin"}}
TraceDrain  == IF TraceDrains = {} THEN 0 ELSE CHOOSE d \in TraceDrains : TRUE
ASSUME TraceDrains \subseteq {TraceDrain}
\* What is ended takes a moment to end.
TraceWorkTtl == TraceBound + TraceGrace + TraceDrain + FenceTtl

\* Before its first boot event a node runs nothing that could be good.
TInit ==
  /\ trace \in 1..Len(Traces)
  /\ i = 1
  /\ Init
  /\ soft = [n \in Nodes |-> "bad"]

Software(good) == IF good THEN "good" ELSE "bad"

\* Results about the session that runs on `n`. If it was tampered with, who uses them is the
\* adversary, which nobody knows yet.
OfThisSession(n) == {r \in Results : r.node = n /\ r.boot = boot[n]}
OnThis(n)        == {n, "adversary"}

\* By the latest epoch that allows it: so there is one step.
Placed(n, until, id) ==
  LET may == {r \in OfThisSession(n) : \E who \in OnThis(n) : MayPlace(who, r, until, id)} IN
  \E who \in OnThis(n), r \in may :
    /\ \A other \in may : other.epoch <= r.epoch
    /\ Place(who, r, until, id)

Task(e) == <<e.job, e.task>>

Event(e) ==
  \/ e.event = "boot"      /\ Boot(e.node, e.resets, Software(e.good))
  \/ e.event = "tamper"    /\ Tamper(e.node)
  \/ e.event = "start"     /\ Restart
  \/ e.event = "challenge" /\ e.nonce = nonces + 1 /\ Challenge(e.node)
  \/ e.event = "verdict"   /\ e.nonce = open[e.node].nonce
                           /\ e.epoch = epoch[e.node] + (IF e.good THEN 0 ELSE 1)
                           /\ IF e.good
                              THEN \E q \in quotes : q.boot = e.resets /\ AnswerGood(e.node, q, e.resets)
                              ELSE AnswerBad(e.node)
  \/ e.event = "too_old"   /\ e.nonce = open[e.node].nonce /\ AnswerLate(e.node)
  \/ e.event = "no_answer" /\ NoAnswer(e.node)
  \/ e.event = "place"     /\ Placed(e.node, e.fresh_until, Task(e))
  \/ e.event = "end"       /\ \/ End(e.node, Task(e))
                              \* Who waits for what was ended by force is told so later.
                              \/ /\ ~e.done
                                 /\ \A w \in work : w.node = e.node => w.id # Task(e)
                                 /\ UNCHANGED vars
  \/ e.event = "begin"     /\ Begin(e.node)
  \* What is signed ends with the evidence that it rests on.
  \/ e.event = "join"      /\ \E who \in OnThis(e.node), r \in OfThisSession(e.node) :
                                Join(who, r) /\ e.until <= r.taken + Bound
  \* Another node's home, where nothing of it runs.
  \/ e.event = "raise"     /\ e.epoch > floor[e.node] /\ Fence(e.node, e.epoch)
  \/ e.event = "fence"     /\ Fence(e.node, e.epoch)

\* Time first goes to the event's, then the event happens.
TNext ==
  /\ ~AtEnd
  /\ UNCHANGED trace
  /\ LET e == Traces[trace][i] IN
     \/ Advance(e.at) /\ UNCHANGED i
     \/ /\ now = e.at
        /\ Event(e)
        /\ i' = i + 1
        /\ PrintT(<<"step", trace, i>>)  \* what stands behind the last one is refused

TSpec == TInit /\ [][TNext]_tvars /\ WF_tvars(TNext)

\* Every event of every trace is a step of the model.
Accepted == <>AtEnd
=============================================================================
