----------------------------- MODULE Membership -----------------------------
(* Who belongs to a cluster, where its operators decide that together: the   *)
(* root's configurations, the votes of those whom it names about one node    *)
(* that may belong to it, and what each node has heard of both. Whatever was *)
(* ever said reaches any node at any time, in any order and as often as      *)
(* somebody likes, or never. Clocks show anything. Code: caps/membership.    *)
EXTENDS Integers, Sequences, FiniteSets

CONSTANTS
  Nodes,       \* those who listen
  Pool,        \* those of them whom the root may name as voters
  MaxConfigs,  \* configurations that the root signs
  MaxVotes,    \* votes that are cast
  MaxNumber    \* the greatest number that a clock gives a vote

VARIABLES
  configs,  \* what the root has signed, in order: who votes since which one, how many it takes
  said,     \* the votes that were cast, in order
  conf,     \* the configuration by which each node goes; 0 if it has heard of none
  heard,    \* of each voter the vote by which each node goes, by its place in said; 0 if none
  gone      \* the latest vote by which each has ever gone: for the properties alone

vars == <<configs, said, conf, heard, gone>>

Stances == {"none", "admit", "remove"}

\* Since which configuration v votes by configuration k; 0 if it does not.
Since(k, v) == IF k = 0 THEN 0 ELSE configs[k].since[v]
Voters(k) == {v \in Pool : Since(k, v) # 0}

Max(a, b) == IF a > b THEN a ELSE b

-----------------------------------------------------------------------------
(* What follows from what a node has heard.                                  *)

Stance(n, v) == IF heard[n][v] = 0 THEN "none" ELSE said[heard[n][v]].stance
Votes(n, stance) == {v \in Voters(conf[n]) : Stance(n, v) = stance}

\* Whether n lets the node in of which all speak.
LetsIn(n) ==
  /\ conf[n] # 0
  /\ Cardinality(Votes(n, "admit")) >= configs[conf[n]].admit
  /\ Cardinality(Votes(n, "remove")) < configs[conf[n]].remove

-----------------------------------------------------------------------------
(* What happens.                                                             *)

Init ==
  /\ configs = << >>
  /\ said = << >>
  /\ conf = [n \in Nodes |-> 0]
  /\ heard = [n \in Nodes |-> [v \in Pool |-> 0]]
  /\ gone = [n \in Nodes |-> [v \in Pool |-> 0]]

\* The root names who votes. Who votes already goes on, and who does not begins anew.
Sign(voters, admit, remove) ==
  LET last == Len(configs)
      since(v) == IF v \notin voters THEN 0
                  ELSE IF Since(last, v) # 0 THEN Since(last, v) ELSE last + 1
  IN /\ last < MaxConfigs
     /\ voters # {}
     /\ configs' = Append(configs,
          [since |-> [v \in Pool |-> since(v)], admit |-> admit, remove |-> remove])
     /\ UNCHANGED <<said, conf, heard, gone>>

\* Of what n has heard of v, what counts by configuration k.
Kept(n, k, v) ==
  IF heard[n][v] # 0 /\ said[heard[n][v]].since = Since(k, v) THEN heard[n][v] ELSE 0

Goes(n, by) == [gone EXCEPT ![n] = [v \in Pool |-> Max(gone[n][v], by[v])]]

\* A configuration reaches a node, from whomever.
Configure(n, k) ==
  /\ k > conf[n]
  /\ conf' = [conf EXCEPT ![n] = k]
  /\ heard' = [heard EXCEPT ![n] = [v \in Pool |-> Kept(n, k, v)]]
  /\ UNCHANGED <<configs, said, gone>>

\* The operator of a voter says what it thinks, by a clock that shows anything: later than whatever it remembers.
Cast(v, stance, number) ==
  LET vote == [voter |-> v, since |-> Since(conf[v], v), number |-> number, stance |-> stance]
      own == [heard[v] EXCEPT ![v] = Len(said) + 1]
  IN /\ Len(said) < MaxVotes
     /\ v \in Voters(conf[v])
     /\ stance # Stance(v, v)
     /\ heard[v][v] # 0 => number > said[heard[v][v]].number
     /\ said' = Append(said, vote)
     /\ heard' = [heard EXCEPT ![v] = own]
     /\ gone' = Goes(v, own)
     /\ UNCHANGED <<configs, conf>>

\* Whether n takes a vote: of one who votes, as it is named now, and later than what n goes by.
Takes(n, i) ==
  LET vote == said[i]
  IN /\ vote.voter \in Voters(conf[n])
     /\ vote.since = Since(conf[n], vote.voter)
     /\ heard[n][vote.voter] # 0 => vote.number > said[heard[n][vote.voter]].number

\* A vote reaches a node, from whomever: any that was ever cast.
Hear(n, i) ==
  LET by == [heard[n] EXCEPT ![said[i].voter] = i]
  IN /\ Takes(n, i)
     /\ heard' = [heard EXCEPT ![n] = by]
     /\ gone' = Goes(n, by)
     /\ UNCHANGED <<configs, said, conf>>

\* n asks m, which has heard something else and goes by no older configuration, for all that it has heard.
Learn(n, m) ==
  LET k == conf[m]
      newer(v) == IF heard[m][v] # 0 /\ (Kept(n, k, v) = 0
                     \/ said[heard[m][v]].number > said[Kept(n, k, v)].number)
                  THEN heard[m][v] ELSE Kept(n, k, v)
      by == [v \in Pool |-> newer(v)]
  IN /\ k >= conf[n]
     /\ <<conf[n], heard[n]>> # <<k, by>>
     /\ conf' = [conf EXCEPT ![n] = k]
     /\ heard' = [heard EXCEPT ![n] = by]
     /\ gone' = Goes(n, by)
     /\ UNCHANGED <<configs, said>>

Next ==
  \/ \E voters \in SUBSET Pool :
       \E admit \in 1..Cardinality(voters), remove \in 1..Cardinality(voters) :
         Sign(voters, admit, remove)
  \/ \E n \in Nodes, k \in 1..Len(configs) : Configure(n, k)
  \/ \E v \in Pool \cap Nodes, stance \in Stances, number \in 1..MaxNumber : Cast(v, stance, number)
  \/ \E n \in Nodes, i \in 1..Len(said) : Hear(n, i)
  \/ \E n, m \in Nodes : Learn(n, m)

Spec == Init /\ [][Next]_vars

\* Each asks each again and again, and the root's last configuration reaches somebody.
Fair ==
  /\ Spec
  /\ \A n, m \in Nodes : WF_vars(Learn(n, m))
  /\ \A n \in Nodes : WF_vars(\E k \in 1..Len(configs) : k = Len(configs) /\ Configure(n, k))

-----------------------------------------------------------------------------
(* What must hold.                                                           *)

TypeOK ==
  /\ conf \in [Nodes -> 0..Len(configs)]
  /\ heard \in [Nodes -> [Pool -> 0..Len(said)]]

\* Nobody is let in but by as many as the root asks for, each of whom has said so since it was named (N2).
N2_LetInByEnough ==
  \A n \in Nodes : LetsIn(n) =>
    LET k == conf[n]
        for(v) == \E i \in 1..Len(said) :
          said[i].voter = v /\ said[i].stance = "admit" /\ said[i].since = Since(k, v)
    IN Cardinality({v \in Voters(k) : for(v)}) >= configs[k].admit

\* Nobody is let in against whom a node has heard enough, unless they have taken it back since (N2).
N2_PutOutByEnough ==
  \A n \in Nodes : LetsIn(n) =>
    Cardinality({v \in Voters(conf[n]) : heard[n][v] # 0 /\ said[heard[n][v]].stance = "remove"})
      < configs[conf[n]].remove

\* What was said before something else that a node has gone by has no effect at that node again (N3).
N3_NothingComesBack ==
  \A n \in Nodes, v \in Pool : heard[n][v] # 0 => heard[n][v] = gone[n][v]

\* Nor does an older configuration.
N3_NoOlderConfiguration == [][\A n \in Nodes : conf'[n] >= conf[n]]_conf

\* Two that go by the same configuration and have heard the same of everybody let in the same: it is a function of that.
\* And they come to have heard the same.
AllHearTheSame == <>[](\A n, m \in Nodes : conf[n] = conf[m] /\ heard[n] = heard[m])

=============================================================================
