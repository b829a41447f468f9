//! What becomes of a step that fails, is dropped, or ends its transaction by itself: on each engine.

macro_rules! steps {
    ($transaction:ident) => {
        #[tokio::test]
        async fn a_result_that_is_too_large_leaves_nothing_of_its_step() {
            for kept in [false, true] {
                let bank = Bank::new().await.with_payloads_of(1000).await;
                let once = bank.once();
                let run = |length: usize, answer: Result<(), String>| {
                    once.run("pay", &Scope::shared(), "one", &(), move |context| async move {
                        let mut phases: InPhases = context.lent().unwrap();
                        let step = phases.step("reserve", |transaction| async move {
                            credit(transaction, 2).await?;
                            Ok::<_, Failed>("x".repeat(length))
                        });
                        match step.await {
                            Ok(_) => {}
                            Err(PhaseError::Store(error)) => {
                                assert_eq!(error.kind(), StoreErrorKind::TooLarge);
                            }
                            Err(error) => panic!("{error:?}"),
                        }
                        answer
                    })
                    .keep_if(move |_| kept)
                };
                let claimed = run(2000, Ok(())).await.unwrap_err();
                assert_eq!(claimed.code(), Some(Code::StoreUnavailable));
                let refused = run(2000, Err("no".to_owned())).await.unwrap_err();
                assert!(matches!(refused, OnceError::Failed { replayed: false, .. }), "{refused:?}");
                assert_eq!(bank.balances().await, [0, 0, 0]);
                // A refusal that is kept is the answer; else nothing has happened.
                let retry = run(1, Ok(())).await;
                assert_eq!(retry.is_err(), kept, "{retry:?}");
                assert_eq!(bank.balances().await, [0, i32::from(!kept), 0]);
            }
        }

        #[tokio::test]
        async fn a_step_that_fails_is_undone_and_can_be_made_up_for() {
            let bank = Bank::new().await;
            let once = bank.once();
            let run = once.run("pay", &Scope::shared(), "one", &(), |context| async move {
                let mut phases: InPhases = context.lent().unwrap();
                phases.step("first", |transaction| credit(transaction, 1)).await?;
                let failed = phases.step("reserve", |transaction| async move {
                    credit(transaction, 2).await.unwrap();
                    Err::<(), _>("no more")
                });
                assert!(matches!(failed.await, Err(PhaseError::Failed("no more"))));
                phases.step("instead", |transaction| credit(transaction, 3)).await?;
                Ok::<_, Failed>(())
            });
            run.await.unwrap();
            assert_eq!(bank.balances().await, [1, 0, 1]);
        }

        #[tokio::test]
        async fn a_first_step_that_fails_leaves_nothing_whatever_is_answered() {
            for kept in [false, true] {
                let bank = Bank::new().await;
                let once = bank.once();
                let run = |answer: Result<(), String>| {
                    once.run("pay", &Scope::shared(), "one", &(), |context| async move {
                        let mut phases: InPhases = context.lent().unwrap();
                        let failed = phases.step("reserve", |transaction| async move {
                            credit(transaction, 2).await.unwrap();
                            Err::<(), _>("no more")
                        });
                        assert!(matches!(failed.await, Err(PhaseError::Failed("no more"))));
                        let next = phases.phase("charge", async |_| Ok::<_, String>(())).await;
                        assert!(matches!(next, Err(PhaseError::Store(_))), "{next:?}");
                        answer
                    })
                    .keep_if(move |_| kept)
                };
                // What it says to have done it has not.
                let claimed = run(Ok(())).await.unwrap_err();
                assert_eq!(claimed.code(), Some(Code::StoreUnavailable));
                for replayed in [false, kept] {
                    let refused = run(Err("no".to_owned())).await.unwrap_err();
                    assert!(
                        matches!(&refused, OnceError::Failed { replayed: it, .. } if *it == replayed),
                        "{refused:?}"
                    );
                }
                assert_eq!(bank.balances().await, [0, 0, 0]);
            }
        }

        #[tokio::test]
        async fn a_step_that_is_dropped_half_done_leaves_nothing() {
            let bank = Bank::new().await;
            let once = bank.once();
            let run = once.run("pay", &Scope::shared(), "one", &(), |context| async move {
                let mut phases: InPhases = context.lent().unwrap();
                phases.step("first", |transaction| credit(transaction, 1)).await?;
                let half_done = phases.step("reserve", |mut transaction| async move {
                    sqlx::raw_sql(CREDITS[1]).execute(&mut *transaction).await?;
                    pending::<Result<(), Failed>>().await
                });
                assert!(timeout(Duration::from_millis(100), half_done).await.is_err());
                Ok::<_, Failed>(())
            });
            run.await.unwrap();
            assert_eq!(bank.balances().await, [1, 0, 0]);
        }

        #[tokio::test]
        async fn mistakes_are_told() {
            let bank = Bank::new().await;
            let once = bank.once();
            let run = once.run("pay", &Scope::shared(), "one", &(), |context| async move {
                let mut phases: InPhases = context.lent().unwrap();
                phases.phase("charge", async |_| Ok::<_, Failed>(())).await?;
                let again = phases.phase("charge", async |_| Ok::<_, Failed>(())).await;
                assert!(matches!(again, Err(PhaseError::Repeated)));
                let lent = context.lent::<$transaction>();
                assert_eq!(lent.unwrap_err(), NotLent::Between);
                Ok::<_, Failed>(())
            });
            run.await.unwrap();
            let run = once.run("pay", &Scope::shared(), "two", &(), |context| async move {
                credit(context.lent().unwrap(), 1).await?;
                let mut phases: InPhases = context.lent().unwrap();
                let loose = phases.phase("charge", async |_| Ok::<_, Failed>(())).await;
                assert!(matches!(loose, Err(PhaseError::Store(_))), "{loose:?}");
                Err::<(), _>(Failed)
            });
            assert!(run.await.is_err());
            assert_eq!(bank.balances().await, [0, 0, 0]);
        }

        #[tokio::test]
        async fn a_step_that_commits_by_hand_is_found_out() {
            let bank = Bank::new().await;
            let once = bank.once();
            let run = || once.run("pay", &Scope::shared(), "one", &(), |context| async move {
                let mut phases: InPhases = context.lent().unwrap();
                let ended = phases.step("reserve", |mut transaction| async move {
                    sqlx::raw_sql(CREDITS[1]).execute(&mut *transaction).await?;
                    sqlx::raw_sql("COMMIT").execute(&mut *transaction).await?;
                    Ok::<_, Failed>(())
                });
                match ended.await {
                    Err(PhaseError::Store(error)) => {
                        assert_eq!(error.kind(), StoreErrorKind::Escaped);
                    }
                    other => panic!("{other:?}"),
                }
                Err::<(), _>(Failed)
            });
            assert!(run().await.is_err());
            // What it did is unknown, and the record says so.
            let refuse = Once::sharing(once.engine())
                .on_unknown_outcome(OnUnknownOutcome::Refuse)
                .build()
                .unwrap();
            let run = refuse.run("pay", &Scope::shared(), "one", &(), |_| async {
                Ok::<_, Failed>(())
            });
            assert_eq!(run.await.unwrap_err().code(), Some(Code::OutcomeUnknown));
        }

        /// Its first transaction has gone, the claim with it, and what it does then commits at once.
        #[tokio::test]
        async fn a_first_step_that_goes_on_after_its_transaction_is_in_doubt() {
            for (fails, kept) in [(false, false), (true, false), (true, true)] {
                let bank = Bank::new().await;
                let once = bank.once();
                let run = once
                    .run("pay", &Scope::shared(), "one", &(), move |context| async move {
                        let mut phases: InPhases = context.lent().unwrap();
                        let ended = phases.step("reserve", |mut transaction| async move {
                            sqlx::raw_sql("ROLLBACK").execute(&mut *transaction).await?;
                            credit(transaction, 2).await
                        });
                        match ended.await {
                            Err(PhaseError::Store(error)) => {
                                assert_eq!(error.kind(), StoreErrorKind::Escaped);
                            }
                            other => panic!("{other:?}"),
                        }
                        if fails { Err("no".to_owned()) } else { Ok(()) }
                    })
                    .keep_if(move |_| kept);
                let escaped = run.await.unwrap_err();
                assert_eq!(escaped.code(), Some(Code::HandlerFailed), "{escaped:?}");
                let refuse = Once::sharing(once.engine())
                    .on_unknown_outcome(OnUnknownOutcome::Refuse)
                    .build()
                    .unwrap();
                let run = refuse.run("pay", &Scope::shared(), "one", &(), |_| async {
                    Ok::<_, String>(())
                });
                let refused = run.await.unwrap_err();
                assert_eq!(refused.code(), Some(Code::OutcomeUnknown), "{refused:?}");
                assert_eq!(bank.balances().await, [0, 1, 0]);
            }
        }
    };
}
