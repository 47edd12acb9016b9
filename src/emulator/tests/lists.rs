//! Pages are the list, filters narrow it, items are partial, and a seed repeats it all.

use super::*;

#[tokio::test]
async fn pages_of_any_size_are_the_same_list() {
    let running = Running::played(options(60)).await;
    let whole = running
        .list("/v2/Conversations", "conversations", 1_000)
        .await;
    assert_eq!(whole.len(), 60);
    for size in [1, 7, 59, 60, 61] {
        let list = running.list("/v2/Conversations", "conversations", size);
        assert_eq!(list.await, whole, "pageSize {size}");
    }
    let longest = longest_conversation(&running, &whole).await;
    let path = format!("/v2/Conversations/{longest}/Communications");
    let all = running.list(&path, "communications", 1_000).await;
    assert!(all.len() > 20);
    assert_eq!(running.list(&path, "communications", 3).await, all);

    let (_, first) = running.get(&format!("{path}?PageSize=5")).await;
    let next = first["meta"]["nextToken"].as_str().unwrap();
    assert_eq!(first["meta"]["previousToken"], Value::Null);
    let (_, second) = running
        .get(&format!("{path}?pageSize=5&PageToken={next}"))
        .await;
    let back = second["meta"]["previousToken"].as_str().unwrap();
    let (_, again) = running
        .get(&format!("{path}?pageSize=5&pageToken={back}"))
        .await;
    assert_eq!(again["communications"], first["communications"]);
    running.finish().await;
}

async fn longest_conversation(running: &Running, all: &[Value]) -> String {
    let mut longest = (0, String::new());
    for id in ids(all) {
        let path = format!("/v2/Conversations/{id}/Communications");
        let count = running.list(&path, "communications", 1_000).await.len();
        longest = longest.max((count, id.to_owned()));
    }
    longest.1
}

#[tokio::test]
async fn filters_narrow_a_list_and_tokens_stay_with_their_filter() {
    let running = Running::played(options(20)).await;
    let new = json!({"configurationId": configuration::CONFIGURATION_ID, "name": "open one"});
    let (status, open) = running.send("POST", "/v2/Conversations", &new).await;
    assert_eq!(status, 201);
    let key = "conversations";
    let path = "/v2/Conversations?status=ACTIVE&status=INACTIVE";
    assert_eq!(running.list(path, key, 50).await.len(), 1);
    let path = "/v2/Conversations?Status=CLOSED";
    let closed = running.list(path, key, 6).await;
    assert_eq!(closed.len(), 20);
    assert!(!ids(&closed).contains(&open["id"].as_str().unwrap()));

    let channel = &closed[3]["participants"][0]["addresses"][0]["channelId"];
    let path = format!("/v2/Conversations?channelId={}", channel.as_str().unwrap());
    let found = running.list(&path, key, 1).await;
    assert_eq!(ids(&found), [closed[3]["id"].as_str().unwrap()]);

    let (_, page) = running.get("/v2/Conversations?pageSize=2").await;
    let token = page["meta"]["nextToken"].as_str().unwrap();
    let path = format!("/v2/Conversations?status=CLOSED&pageToken={token}");
    let (status, problem) = running.get(&path).await;
    assert_eq!((status, &problem["status"]), (400, &json!(400)));
    running.finish().await;
}

#[tokio::test]
async fn lists_are_partial_and_single_resources_are_whole() {
    let running = Running::played(Options {
        partial: 1.0,
        ..options(30)
    })
    .await;
    let truth: Value = serde_json::from_slice(&running.truth().await).unwrap();
    let mut missing = BTreeSet::new();
    let mut flat = BTreeSet::new();
    for conversation in truth["conversations"].as_array().unwrap() {
        let id = conversation["id"].as_str().unwrap();
        let path = format!("/v2/Conversations/{id}/Communications");
        let listed = running.list(&path, "communications", 13).await;
        let whole = conversation["communications"].as_array().unwrap();
        assert_eq!(ids(&listed), ids(whole));
        for item in &listed {
            let lacks = ["createdAt", "author", "content", "recipients"];
            let lacking: Vec<_> = lacks.iter().filter(|f| item.get(**f).is_none()).collect();
            assert!(!lacking.is_empty(), "every item is partial: {item}");
            missing.extend(lacking.into_iter().copied());
            for other in ["dateCreated", "channel", "body"] {
                if item.get(other).is_some() {
                    flat.insert(other);
                }
            }
        }
        let (_, single) = running.get(&format!("{path}/{}", ids(whole)[0])).await;
        assert_eq!(single, whole[0], "the single GET is the truth");
    }
    assert_eq!(missing.len(), 4, "{missing:?}");
    assert_eq!(flat.len(), 3, "{flat:?}");
    let conversations = running.list("/v2/Conversations", "conversations", 50).await;
    assert!(conversations.iter().any(|c| c.get("channels").is_none()));
    assert!(conversations.iter().any(|c| c.get("createdAt").is_none()));
    let id = ids(&conversations)[0];
    let (_, single) = running.get(&format!("/v2/Conversations/{id}")).await;
    assert!(single["channels"].is_array() && single["createdAt"].is_string());
    running.finish().await;
}

#[tokio::test]
async fn a_seed_repeats_the_truth_byte_for_byte_whatever_the_pace() {
    let first = Running::played(options(40)).await;
    let second = Running::played(Options {
        rate: Some(2_000.0),
        ..options(40)
    })
    .await;
    let truth = first.truth().await;
    assert!(truth == second.truth().await, "the truths differ");
    let parsed: Value = serde_json::from_slice(&truth).unwrap();
    assert_eq!(parsed["conversations"].as_array().unwrap().len(), 40);
    first.finish().await;
    second.finish().await;
}

#[tokio::test]
async fn a_large_conversation_is_served_page_by_page() {
    let running = Running::played(Options {
        large: Some(2_500),
        ..options(1)
    })
    .await;
    let (_, page) = running.get("/v2/Conversations").await;
    let id = page["conversations"][0]["id"].as_str().unwrap();
    let path = format!("/v2/Conversations/{id}/Communications");
    let list = running.list(&path, "communications", 1_000).await;
    assert!((2_500..=2_501).contains(&list.len()));
    let truth: Value = serde_json::from_slice(&running.truth().await).unwrap();
    let whole = truth["conversations"][0]["communications"]
        .as_array()
        .unwrap();
    assert_eq!(ids(whole), ids(&list));
    running.finish().await;
}
