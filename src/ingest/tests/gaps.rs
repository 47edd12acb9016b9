//! Positions and topics that do not fit together, and owners that do not know they were replaced.

use super::*;
use crate::ingest::identity;
use crate::lake::LakeError;
use crate::topic::Gap;

/// Commits positions of `app` in a table, as another process would.
async fn moved(lake: &Lake, table: TableName, app: &str, from: Option<i64>, to: i64) {
    let commit = Commit {
        positions: vec![Position {
            app: app.to_owned(),
            from,
            to,
        }],
        ..Commit::default()
    };
    lake.table(table).commit(&commit).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_with_another_id_is_refused_and_the_first_id_is_kept() {
    let world = World::start().await;
    let (work, settings) = (world.archive(), world.settings("g-archive"));
    for id in [7, 7] {
        let seen = identity::compare(&*work, &settings, id).await;
        assert_eq!(seen.unwrap(), identity::Seen::Same);
    }
    let error = identity::compare(&*work, &settings, 8).await.unwrap_err();
    assert!(matches!(error, IngestError::Recreated { .. }), "{error}");
    for word in ["convolake.events", "--group", "reconcile"] {
        assert!(error.to_string().contains(word), "{word}: {error}");
    }
    // Another group has no positions of the topic before.
    let settings = world.settings("h-archive");
    let seen = identity::compare(&*work, &settings, 8).await;
    assert_eq!(seen.unwrap(), identity::Seen::Same);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_outside_the_log_stops_the_group_and_names_the_command() {
    let world = World::start().await;
    world.publish("a", opened("a").as_bytes()).await;
    let app = world.settings("g-archive").app(0);
    moved(&world.lake, TableName::Events, &app, None, 7).await;
    let error = world.spawn(world.archive(), "g-archive").fails().await;
    let said = format!("{:#}", anyhow::Error::from(error));
    for part in [
        "partition 0 holds 0..1",
        "6 records short of 7",
        "--group",
        "reconcile",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_accepted_gap_is_passed_over_once_and_nothing_beside_it() {
    let world = World::start().await;
    for n in 0..6 {
        world
            .publish("a", opened(&format!("a{n}")).as_bytes())
            .await;
    }
    let app = world.settings("g-archive").app(0);
    moved(&world.lake, TableName::Events, &app, None, 1).await;
    let gap = |text: &str| text.parse::<Gap>().unwrap();
    let settings = Settings {
        accepted_gaps: vec![gap("0:1..4"), gap("0:0..6"), gap("1:1..6")],
        ..world.settings("g-archive")
    };
    let kafka = world.cluster.settings();
    let group = world.spawn_with(world.archive(), &kafka, settings.clone());
    group.passes(2).await;
    group.end().await.unwrap();
    // The second time the position is behind the gap, and nothing is passed over or read again.
    world.publish("a", opened("a6").as_bytes()).await;
    let group = world.spawn_with(world.archive(), &kafka, settings);
    group.passes(1).await;
    group.end().await.unwrap();
    let rows = world.ids(TableName::Events, "conversation_id").await;
    assert_eq!(sorted(rows), ["a4", "a5", "a6"]);
    for wrong in [
        "", "0", "0:1", "0:1..1", "0:2..1", "-1:0..1", "0:-1..1", "0:1..x",
    ] {
        assert!(wrong.parse::<Gap>().is_err(), "{wrong}");
    }
}

/// A zombie holds a batch while another owner takes over: whatever it looks at meanwhile, and whenever, its commit
/// is refused, because it starts from the position that its batch was read from.
#[tokio::test]
async fn a_zombies_commit_is_refused_in_every_interleaving_also_after_it_reloads() {
    #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
    enum Step {
        ZombieReloads,
        ZombieCommits,
        OwnerReads,
        OwnerCommits,
    }
    use Step::{OwnerCommits, OwnerReads, ZombieCommits, ZombieReloads};
    let app = "convolake/g/c/t/0";
    let at = |from, to| Commit {
        rows: vec![table::events_batch(&[])],
        positions: vec![Position {
            app: app.to_owned(),
            from,
            to,
        }],
        ..Commit::default()
    };
    // Two reloads, and the owner reads before it commits: 5!/2! orders, less those where it does not.
    let mut orders = vec![vec![]];
    for _ in 0..5 {
        let all = [
            ZombieReloads,
            ZombieReloads,
            ZombieCommits,
            OwnerReads,
            OwnerCommits,
        ];
        orders = orders
            .into_iter()
            .flat_map(|order: Vec<Step>| {
                let left = all.into_iter().filter(|step| {
                    let most = all.iter().filter(|s| *s == step).count();
                    order.iter().filter(|s| *s == step).count() < most
                });
                let left: BTreeSet<Step> = left.collect();
                let order = order.clone();
                left.into_iter()
                    .map(move |step| [&order[..], &[step]].concat())
            })
            .collect();
    }
    orders.retain(|order| {
        let place = |step| order.iter().position(|it| *it == step);
        place(OwnerReads) < place(OwnerCommits)
    });
    assert_eq!(orders.len(), 30);
    for order in orders {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap();
        let zombie = Lake::open(path, Access::Create).await.unwrap();
        let owner = Lake::open(path, Access::Create).await.unwrap();
        let (zombie, owner) = (
            zombie.table(TableName::Events),
            owner.table(TableName::Events),
        );
        zombie.commit(&at(None, 10)).await.unwrap();
        let apps = [app.to_owned()];
        let (mut seen, mut zombie_won, mut owner_won) = (None, None, None);
        for step in &order {
            match step {
                ZombieReloads => drop(zombie.positions(&apps).await.unwrap()),
                OwnerReads => seen = owner.positions(&apps).await.unwrap()[0],
                ZombieCommits => zombie_won = Some(zombie.commit(&at(Some(10), 15)).await),
                OwnerCommits => owner_won = Some(owner.commit(&at(seen, seen.unwrap() + 7)).await),
            }
        }
        let place = |step| order.iter().position(|it| *it == step).unwrap();
        let refused = |result: Option<Result<_, LakeError>>| {
            matches!(result.unwrap(), Err(LakeError::Refused { .. }))
        };
        let zombie_first = place(ZombieCommits) < place(OwnerCommits);
        let owner_knew = place(OwnerReads) > place(ZombieCommits);
        assert_eq!(refused(zombie_won), !zombie_first, "{order:?}");
        assert_eq!(refused(owner_won), zombie_first && !owner_knew, "{order:?}");
    }
}
