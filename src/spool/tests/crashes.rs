//! The queue on a disk whose power is cut at every step, and as a model says under any sequence.

use proptest::prelude::*;

use super::disk::Volatile;
use super::*;
use crate::spool::queue::Queue;

/// Names of what is in the queue, in order.
type Model = Vec<u64>;

#[derive(Debug, Clone)]
enum Op {
    /// One commit: removes the records at these places (beyond the end: none), adds this many of a size.
    Commit(Vec<usize>, u64, usize),
    /// Closed and opened again.
    Reopen,
    /// The process is gone: what the system had taken is there.
    Kill,
    /// The power is gone: of what was not synced, the image of this number is there.
    PowerCut(usize),
}

fn content(queue: &Queue) -> Model {
    values(&queue.read(None, usize::MAX, usize::MAX).unwrap())
}

fn open(disk: &Volatile) -> Queue {
    let queue = Queue::open(Box::new(disk.clone())).unwrap();
    assert_eq!(queue.records(), content(&queue).len() as u64);
    queue
}

/// A disk with an empty queue, closed.
fn empty() -> Vec<u8> {
    let disk = Volatile::default();
    Queue::create(Box::new(disk.clone()), 0).unwrap().close();
    disk.now()
}

/// One commit in the queue and in the model; the model of before where it failed.
fn commit(
    queue: &mut Queue,
    model: &Model,
    places: &[usize],
    added: u64,
    size: usize,
    name: &mut u64,
) -> (Model, bool) {
    let stored = queue.read(None, usize::MAX, usize::MAX);
    let Ok(stored) = stored else {
        return (model.clone(), false);
    };
    let mut places: Vec<_> = places
        .iter()
        .filter(|place| **place < model.len())
        .collect();
    places.sort_unstable();
    places.dedup();
    let numbers: Vec<_> = places
        .iter()
        .map(|place| stored[**place].number())
        .collect();
    let mut after: Model = model.clone();
    for place in places.into_iter().rev() {
        after.remove(*place);
    }
    let entries = (*name..*name + added).map(|n| entry_of(n, size)).collect();
    after.extend(*name..*name + added);
    *name += added;
    let committed = queue.commit(&numbers, entries, 7).is_ok();
    (after, committed)
}

/// Small and with everything in it: growth, removal from both ends, records of several pages, emptiness.
fn script() -> Vec<(Vec<usize>, u64, usize)> {
    vec![
        (vec![], 3, 100),
        (vec![0], 2, 6_000),
        (vec![1, 3], 1, 10),
        (vec![0, 1], 0, 0),
        (vec![0], 0, 0),
        (vec![], 2, 100),
    ]
}

#[test]
fn whatever_step_the_power_is_cut_at_a_commit_is_there_whole_or_not_at_all() {
    let image = empty();
    let mut states = 0;
    for cut_at in 0.. {
        let disk = Volatile::with(image.clone(), Some(cut_at));
        let (mut model, mut in_flight, mut name) = (Model::new(), None, 0);
        if let Ok(mut queue) = Queue::open(Box::new(disk.clone())) {
            for (places, added, size) in script() {
                let (after, done) = commit(&mut queue, &model, &places, added, size, &mut name);
                if !done {
                    in_flight = Some(after);
                    break;
                }
                model = after;
            }
            queue.close();
        }
        for image in disk.after_power_cut() {
            states += 1;
            let recovered = open(&Volatile::with(image, None));
            let content = content(&recovered);
            assert!(
                content == model || Some(&content) == in_flight.as_ref(),
                "cut at {cut_at}: {content:?} is neither {model:?} nor {in_flight:?}"
            );
        }
        if in_flight.is_none() && disk.steps() < cut_at {
            println!("{cut_at} steps, {states} states");
            assert!(cut_at > 30 && states > 200, "{cut_at} {states}");
            return;
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let places = proptest::collection::vec(0..12usize, 0..6);
    prop_oneof![
        6 => (places, 0..5u64, 0..9_000usize).prop_map(|(p, n, s)| Op::Commit(p, n, s)),
        1 => Just(Op::Reopen),
        2 => Just(Op::Kill),
        2 => any::<usize>().prop_map(Op::PowerCut),
    ]
}

fn check(ops: &[Op]) {
    let mut disk = Volatile::with(empty(), None);
    let mut queue = open(&disk);
    let (mut model, mut name) = (Model::new(), 0);
    for op in ops {
        match op {
            Op::Commit(places, added, size) => {
                let (after, done) = commit(&mut queue, &model, places, *added, *size, &mut name);
                assert!(done);
                model = after;
            }
            Op::Reopen => {
                queue.close();
                queue = open(&disk);
            }
            Op::Kill => {
                disk = Volatile::with(disk.now(), None);
                queue = open(&disk);
            }
            Op::PowerCut(which) => {
                let images = disk.after_power_cut();
                let image = images.iter().nth(which % images.len()).unwrap();
                disk = Volatile::with(image.clone(), None);
                queue = open(&disk);
            }
        }
        assert_eq!(content(&queue), model);
        assert_eq!(queue.records(), model.len() as u64);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    #[test]
    fn it_is_the_queue_of_what_was_acknowledged(ops in proptest::collection::vec(op(), 1..14)) {
        check(&ops);
    }
}
