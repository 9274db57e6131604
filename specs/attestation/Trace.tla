------------------------------- MODULE Trace -------------------------------
(***************************************************************************)
(* Whether a run is a behaviour of Attestation. A trace holds the events   *)
(* of the run of one verifier, in the order of their times, which are      *)
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

\* What the traces say of the nodes and the bound, which is one.
AllEvents   == UNION {{Traces[t][n] : n \in 1..Len(Traces[t])} : t \in 1..Len(Traces)}
TraceNodes  == {e.node : e \in AllEvents}
TraceBounds == {e.bound : e \in {e \in AllEvents : e.event = "start"}}
TraceBound  == CHOOSE b \in TraceBounds : TRUE
ASSUME TraceBounds = {TraceBound}

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
  \/ e.event = "place"     /\ \E who \in OnThis(e.node), r \in OfThisSession(e.node) :
                                Place(who, r, e.fresh_until)
  \/ e.event = "join"      /\ \E who \in OnThis(e.node), r \in OfThisSession(e.node) : Join(who, r)
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
