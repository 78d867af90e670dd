//! The suite's facts about whole states: walks, comparisons, audits.

use flagstone_core::audit::{Findings, audit_tries};
use flagstone_core::compare::{StateTries, compare};
use flagstone_core::diff::{StateDiff, Subject};
use flagstone_core::error::StateError;
use flagstone_core::felt::Felt;
use flagstone_core::hash::Bulk;
use flagstone_core::layout::Layout;
use flagstone_core::scrub::{At, Contradiction, Scrub};
use flagstone_core::store::WriteBatch;
use flagstone_core::trie::{Broken, Leaves, TrieId};
use flagstone_core::types::{ContractAddress, StorageValue, TrieKey};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;

use crate::driver::{Driver, sample_driver};
use crate::property::{fail, for_random, for_random_blocks};
use crate::reference::ReferenceState;
use crate::strategies::blocks;

fn committed<'a, L: Layout>(
    layout: &'a L,
    diffs: &[StateDiff],
) -> Result<(Driver<'a, L>, ReferenceState), TestCaseError> {
    let (mut driver, mut reference) = (Driver::new(layout), ReferenceState::new());
    for diff in diffs {
        driver.close(diff);
        reference.apply(diff);
    }
    driver.commit().map_err(fail)?;
    Ok((driver, reference))
}

fn all<'a>(walk: impl IntoIterator<Item = Leaves<'a>>) -> Result<Vec<(TrieKey, Felt)>, TestCaseError> {
    let leaves = walk.into_iter().flatten().collect::<Result<Vec<_>, Broken>>();
    leaves.map_err(|broken| fail(broken.into()))
}

/// Walks give the map's entries in order: whole, from any key, in any number of parts, with and without hashing.
pub fn walks_visit_every_leaf_in_order<L: Layout>(make: impl Fn() -> L) {
    let layout = &make();
    for_random_blocks(24, 1..6, |diffs| {
        let (driver, reference) = committed(layout, &diffs)?;
        let roots = driver.state().roots;
        let rows = layout.tries(driver.state());
        let mut tries = vec![(TrieId::Contracts, roots.contracts.0), (TrieId::Classes, roots.classes.0)];
        for (address, _) in reference.leaves(TrieId::Contracts) {
            let address = ContractAddress::from(address);
            let root = rows.contract_leaf(&address).map_err(fail)?.storage_root.0;
            tries.push((TrieId::Storage(address), root));
        }
        for (trie, root) in tries {
            let walk = || Leaves::new(rows.as_ref(), trie, root);
            let leaves = all([walk()])?;
            let expected = reference.leaves(trie);
            let keys = |leaves: &[(TrieKey, Felt)]| leaves.iter().map(|(key, _)| *key).collect::<Vec<_>>();
            prop_assert_eq!(keys(&leaves), keys(&expected), "{}", trie);
            prop_assert_eq!(&leaves, &expected, "{}", trie);
            prop_assert_eq!(&all([walk().verified(&Bulk)])?, &leaves);
            for (at, (key, _)) in leaves.iter().enumerate() {
                prop_assert_eq!(&all([walk().starting_at(key)])?, &leaves[at..]);
                if let Some(behind) = successor(key) {
                    prop_assert_eq!(&all([walk().starting_at(&behind)])?, &leaves[at + 1..]);
                }
            }
            for parts in [1, 2, 3, 7, 64] {
                prop_assert_eq!(&all(walk().verified(&Bulk).split(parts))?, &leaves, "in {} parts", parts);
                let mut begun = walk();
                let first: Vec<_> = begun.next().into_iter().filter_map(Result::ok).collect();
                prop_assert_eq!([first, all(begun.split(parts))?].concat(), leaves.clone());
            }
        }
        Ok(())
    });
}

fn successor(key: &TrieKey) -> Option<TrieKey> {
    (*key != TrieKey::MAX).then(|| TrieKey::try_from(key.to_felt() + Felt::ONE).unwrap_or_default())
}

/// Two states compared by their hashes differ as their maps do.
pub fn differences_are_those_of_the_maps<L: Layout>(make: impl Fn() -> L) {
    let layout = &make();
    for_random_blocks(32, 2..8, |diffs| {
        let cuts = [(diffs.len(), diffs.len() - 1), (diffs.len() / 2, diffs.len()), (0, diffs.len())];
        for (a, b) in cuts {
            let (a, in_a) = committed(layout, &diffs[..a])?;
            // The second state has another history, too.
            let (b, in_b) = committed(layout, &diffs[diffs.len() - b..])?;
            let expected = brute_force(&in_a.values(), &in_b.values());
            let (a_tries, b_tries) = (layout.tries(a.state()), layout.tries(b.state()));
            let mut found = Vec::new();
            let mut failed = None;
            compare(
                StateTries { rows: a_tries.as_ref(), roots: a.state().roots },
                StateTries { rows: b_tries.as_ref(), roots: b.state().roots },
                &mut |difference| match difference {
                    Ok(difference) => {
                        found.push((difference.subject, difference.values));
                        true
                    }
                    Err(broken) => {
                        failed = Some(StateError::from(broken));
                        false
                    }
                },
            );
            failed.map_or(Ok(()), |error| Err(fail(error)))?;
            prop_assert_eq!(sorted(found), sorted(expected));
        }
        Ok(())
    });
}

type Differing = (Subject, [Felt; 2]);

fn brute_force(a: &[(Subject, Felt)], b: &[(Subject, Felt)]) -> Vec<Differing> {
    let value = |values: &[(Subject, Felt)], wanted: &Subject| {
        values.iter().find(|(subject, _)| subject == wanted).map_or(Felt::ZERO, |(_, value)| *value)
    };
    let in_a = a.iter().map(|(subject, _)| subject);
    let only_in_b = b.iter().map(|(subject, _)| subject).filter(|subject| value(a, subject) == Felt::ZERO);
    let both = in_a.chain(only_in_b).map(|subject| (*subject, [value(a, subject), value(b, subject)]));
    both.filter(|(_, [a, b])| a != b).collect()
}

fn sorted(mut differences: Vec<Differing>) -> Vec<Differing> {
    differences.sort_by_cached_key(|difference| format!("{difference:?}"));
    differences
}

fn audit<L: Layout>(layout: &L, driver: &Driver<'_, L>) -> Vec<String> {
    let (findings, state) = (Findings::default(), driver.state());
    let tries = layout.tries(state);
    let audited = audit_tries(tries.as_ref(), state.roots, &Bulk, &findings, &|_| ())
        .and_then(|visited| layout.audit(state, &visited, &Bulk, &findings));
    assert!(audited.is_ok(), "a store in memory does not fail");
    findings.into_parts().0.iter().map(ToString::to_string).collect()
}

/// Sound states have no finding. Any row of a state that is changed gives one; so does one that is removed or added,
/// unless the layout keeps rows of other states.
pub fn an_audit_passes_sound_states_and_finds_damage<L: Layout>(make: impl Fn() -> L) {
    let layout = &make();
    for_random_blocks(16, 1..6, |diffs| {
        let (driver, _) = committed(layout, &diffs)?;
        prop_assert_eq!(audit(layout, &driver), Vec::<String>::new());
        Ok(())
    });
    let driver = sample_driver(layout);
    let rows = driver.rows();
    let with = |key: &[u8], row: Option<Vec<u8>>| {
        let mut batch = WriteBatch::default();
        match row {
            Some(row) => batch.put(key, row),
            None => batch.delete(key),
        }
        driver.write(batch);
        audit(&make(), &driver)
    };
    for (key, row) in &rows {
        for at in (0..row.len()).step_by(9).chain(row.len().checked_sub(1)) {
            let mut changed = row.clone();
            changed[at] ^= 1 << (at % 8);
            assert!(!with(key, Some(changed)).is_empty(), "byte {at} of the row at {key:02x?} was changed");
        }
        let lost = with(key, None);
        assert!(layout.keeps_old_states() || !lost.is_empty(), "the row at {key:02x?} was lost");
        with(key, Some(row.clone()));
        for at in (0..key.len()).step_by(4).chain(key.len().checked_sub(1)) {
            let mut other = key.clone();
            other[at] ^= 1 << (at % 8);
            if rows.iter().all(|(key, _)| *key != other) {
                let added = with(&other, Some(row.clone()));
                assert!(!added.is_empty(), "a row was added at {other:02x?}");
                with(&other, None);
            }
        }
    }
    assert_eq!(audit(&make(), &driver), Vec::<String>::new(), "all is as it was");
}

/// Goes over all rows, some at a time, with blocks between the steps. Returns what is found.
fn scrub<L: Layout>(
    driver: &mut Driver<'_, L>,
    rows_max: u64,
    blocks: &mut dyn Iterator<Item = StateDiff>,
) -> Result<Vec<Contradiction>, StateError> {
    let (mut scrub, mut found) = (Scrub::default(), Vec::new());
    while scrub.at() != At::End {
        found.extend(driver.layout().scrub(driver.state(), &mut scrub, rows_max)?.findings);
        let Some(diff) = blocks.next() else { continue };
        driver.close(&diff);
        let undo = driver.commit_staged()?.undo;
        let Some((address, _)) = scrub.inside() else { continue };
        for contract in undo.iter().flat_map(StateDiff::contracts).filter(|of| of.address == address) {
            for (key, before) in &contract.storage {
                let after = diff.value(&Subject::Storage(address, *key)).map_or(*before, StorageValue);
                scrub.changed(key, before, &after);
            }
        }
    }
    Ok(found)
}

/// A scrub finds nothing in a sound state, whatever is committed between its steps, and finds each value row that is lost or
/// is an old one. A layout without value rows has none to find.
pub fn a_scrub_finds_lost_and_old_value_rows<L: Layout>(make: impl Fn() -> L) {
    let layout = &make();
    for_random(16, &(blocks(1..8), blocks(1..8), 1..12u64), |(before, beside, rows_max)| {
        let (mut driver, _) = committed(layout, &before)?;
        let found = scrub(&mut driver, rows_max, &mut beside.into_iter()).map_err(fail)?;
        prop_assert_eq!(found, Vec::new());
        Ok(())
    });
    let mut driver = sample_driver(layout);
    let values = driver.touched_rows();
    assert_eq!(layout.has_value_rows(), !values.is_empty());
    for (key, row) in values {
        for other in [None, Some(vec![1, 0x77])] {
            let mut batch = WriteBatch::default();
            match &other {
                Some(other) => batch.put(&key, other.clone()),
                None => batch.delete(&key),
            }
            driver.write(batch);
            for rows_max in [1, u64::MAX] {
                let found = scrub(&mut driver, rows_max, &mut std::iter::empty());
                assert_eq!(found.map_or(0, |found| found.len()), 1, "the row at {key:02x?} is {other:02x?}");
            }
        }
        let mut batch = WriteBatch::default();
        batch.put(&key, row);
        driver.write(batch);
    }
    let found = scrub(&mut driver, 3, &mut std::iter::empty());
    assert!(found.is_ok_and(|found| found.is_empty()), "all is as it was");
}
