-------------------------------- MODULE MC --------------------------------
EXTENDS Gpu

RedAndBlue == {"red", "blue"}
RedBlueGreen == {"red", "blue", "green"}

\* Two slices: both halves, and the whole.
TwoSlices == {1, 2}
HalvesAndWhole == {{1}, {2}, {1, 2}}

\* Three slices: partitions that overlap without containing one another.
ThreeSlices == {1, 2, 3}
Overlapping == {{1}, {1, 2}, {2, 3}}

-----------------------------------------------------------------------------
(* States that must be reachable, or the invariants say nothing.           *)

\* Red and blue work on one GPU, each in its own partition.
Witness_SideBySide ==
  \E p, q \in Shapes : <<"red", p>> \in opened /\ <<"blue", q>> \in opened

\* A process stays, and writes, after its lease and its permission have ended.
Witness_StaysAfterLease ==
  \E p \in Shapes : <<"red", p>> \in opened /\ permitted = {} /\ phase[p] = "dirty"

\* The service has crashed, and a process of before has a partition open of which nothing is remembered.
Witness_OutlivesTheService ==
  \E p \in Shapes : crashes > 0 /\ <<"red", p>> \in opened /\ lease[p] = NoLease

\* After a crash a partition that red had is blue's: here its other slice still shows who had it.
Witness_PassedOnAfterCrash ==
  \E p \in Shapes : \E s \in Slices \ p :
    crashes > 0 /\ <<"blue", p>> \in opened /\ s \notin mark /\ holder[s] = "red"

\* What was verified needs no scrub after a crash.
Witness_MarkOutlivesACrash ==
  crashes > 0 /\ mark = Slices

\* A scrub that said it was done was not.
Witness_ScrubFailed ==
  \E p \in Shapes : phase[p] = "quarantined" /\ \E s \in p : holder[s] # "nobody"

=============================================================================
