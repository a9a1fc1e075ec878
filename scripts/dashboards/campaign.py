"""Campaign: what the labels bought, round by round."""

from scripts.dashboards.board import Dashboard, Row, Variable
from scripts.dashboards.panels import (
    BLUE,
    GREEN,
    RED,
    YELLOW,
    Query,
    against_labels,
    bars,
    by_round,
    lines,
    stat,
    table,
)

_CHOSEN = 'campaign=~"$campaign"'
_NONE_YET = "No round has been measured yet"

# Thresholds are the alerts': AccuracyDropped and CampaignWaiting.
_AT_A_GLANCE = Row(
    "At a glance",
    5,
    [
        stat(
            "Version that serves",
            "What inference answers with when a request names no version. 0: nothing is promoted yet.",
            Query('max by (model) (inference_current_version{model=~"$campaign"})', "{{model}}"),
            "none",
            "Inference serves none of these",
            thresholds={None: YELLOW, 1: BLUE},
            decimals=0,
        ),
        stat(
            "How good it is",
            "Accuracy of the version that serves, on the campaign's test samples.",
            Query('model:accuracy:serving{model=~"$campaign"}', "{{model}} v{{version}}"),
            "percentunit",
            "Inference serves none of these",
            thresholds={None: BLUE},
            decimals=1,
        ),
        stat(
            "What the next batch is worth",
            "Accuracy that the next batch of labels is expected to bring, by the learning curve of the random slice. "
            "Where it is nearly nothing, more labels are wasted.",
            Query(f"max by (campaign) (al_expected_gain{{{_CHOSEN}}})", "{{campaign}}"),
            "percentunit",
            "Needs 4 rounds with a random slice",
            thresholds={None: YELLOW, 0.005: GREEN},
            decimals=2,
        ),
        stat(
            "What the last round brought",
            "Accuracy on the test samples, newest round less the one before. Below -3 points: alert AccuracyDropped.",
            Query(f"campaign:accuracy:change{{{_CHOSEN}}}", "{{campaign}}"),
            "percentunit",
            "Needs two rounds",
            thresholds={None: RED, -0.03: YELLOW, 0: GREEN},
            decimals=1,
        ),
        stat(
            "Labels bought",
            "Labels that the newest round's model used.",
            Query(f"campaign:labels:latest{{{_CHOSEN}}}", "{{campaign}}"),
            "short",
            "No round is done yet",
            thresholds={None: BLUE},
        ),
        stat(
            "Waits since",
            "How long a campaign has waited for labels, or for a service that is away. After an hour: CampaignWaiting.",
            Query(f"time() - min by (campaign) (al_campaign_waiting_since_seconds{{{_CHOSEN}}} > 0)", "{{campaign}}"),
            "s",
            "None waits",
            thresholds={None: YELLOW, 3600: RED},
        ),
    ],
)

_BY_ROUND = Row(
    "By round",
    9,
    [
        by_round(
            "Accuracy",
            "Share of the test samples that the round's model gets right.",
            Query(f'max by (campaign, round) (al_round_accuracy{{{_CHOSEN}, split="test"}})'),
            "percentunit",
            _NONE_YET,
        ),
        by_round(
            "Macro F1",
            "Mean of the classes' F1 on the test samples: a class that is never found pulls it down, accuracy may not.",
            Query(f'max by (campaign, round) (al_round_macro_f1{{{_CHOSEN}, split="test"}})'),
            "percentunit",
            _NONE_YET,
        ),
        by_round(
            "Calibration error",
            "Expected calibration error on the test samples, 15 bins: how far confidence is from being right. "
            "Lower is better.",
            Query(f"max by (campaign, round) (al_round_calibration_error{{{_CHOSEN}}})"),
            "percentunit",
            _NONE_YET,
            minimum=0,
        ),
    ],
)

_LABELS = Row(
    "What labels buy",
    10,
    [
        against_labels(
            "Accuracy against labels",
            "The curve to compare campaigns by: higher at the same number of labels is better. Choose them at the top.",
            # How many labels becomes a label, so that it can be an axis.
            Query(
                f'max by (campaign, round) (al_round_accuracy{{{_CHOSEN}, split="test"}})'
                ' * on (campaign, round) group_left (labels) count_values by (campaign, round) ("labels",'
                f" max by (campaign, round) (al_round_labelled_samples{{{_CHOSEN}}}))"
            ),
            "percentunit",
            _NONE_YET,
        ),
        by_round(
            "Accuracy on the random slice",
            "Out of fold, on labelled samples that were drawn at random: what promotion and stopping decide by.",
            Query(f'max by (campaign, round) (al_round_accuracy{{{_CHOSEN}, split="random_slice"}})'),
            "percentunit",
            "No labels were drawn at random (random_share is 0)",
        ),
    ],
)

_NEWEST = 'count_values by (campaign) ("round", max by (campaign) (al_campaign_round))'

_QUERIES = Row(
    "What the strategy asks for",
    9,
    [
        by_round(
            "Query score",
            "Mean acquisition score of what the strategy picked. It falls as the model grows sure of the pool; "
            "scales of different strategies do not compare.",
            Query(f"max by (campaign, round) (al_round_query_score{{{_CHOSEN}}})"),
            "short",
            "The strategy gives no scores, or only the first round is done",
        ),
        bars(
            "Labels by class",
            "Labels bought up to the newest round. Classes that are hard get more; one that gets none is worth a look.",
            Query(
                "max by (campaign, class)"
                f" (al_round_labels{{{_CHOSEN}}} * on (campaign, round) group_left () {_NEWEST})"
            ),
            "class",
            "campaign",
            "short",
            "No round is done yet",
        ),
    ],
)

_COST = Row(
    "What rounds cost",
    9,
    [
        by_round(
            "Images scored per second",
            "Of the unlabelled pool, by inference, while a batch is chosen.",
            Query(f'max by (campaign, round) (al_round_images_per_second{{{_CHOSEN}, phase="score"}})'),
            "short",
            "No round has scored the pool yet",
            minimum=0,
        ),
        bars(
            "Seconds by phase",
            "Mean of the rounds that the workers have finished since they were started.",
            Query(
                f"sum by (campaign, phase) (al_round_phase_seconds_sum{{{_CHOSEN}}})"
                f" / sum by (campaign, phase) (al_round_phase_seconds_count{{{_CHOSEN}}})"
            ),
            "phase",
            "campaign",
            "s",
            "No worker has finished a round since it was started",
        ),
        lines(
            "Failed tries",
            "Rounds that failed in the last quarter of an hour, by reason. unavailable: another service was away, and "
            "the round is tried again.",
            [
                Query(
                    f"sum by (campaign, reason) (increase(al_round_failures_total{{{_CHOSEN}}}[15m]))",
                    "{{campaign}} {{reason}}",
                )
            ],
            "short",
            "No worker tells",
            minimum=0,
        ),
    ],
)

_COMPARED = Row(
    "Campaigns compared",
    8,
    [
        table(
            "Campaigns",
            "One line for each campaign that is chosen at the top. Promoted and serving differ while a swap goes "
            "on; for longer than ten minutes: alert ModelStale.",
            {
                "State": (Query(f"max by (campaign, state) (al_campaign_state{{{_CHOSEN}}}) == 1"), "none"),
                "Round": (Query(f"max by (campaign) (campaign:round:latest{{{_CHOSEN}}})"), "none"),
                "Labels": (Query(f"max by (campaign) (campaign:labels:latest{{{_CHOSEN}}})"), "none"),
                "Accuracy": (Query(f"max by (campaign) (campaign:accuracy:latest{{{_CHOSEN}}})"), "percentunit"),
                "Last round brought": (
                    Query(f"max by (campaign) (campaign:accuracy:change{{{_CHOSEN}}})"),
                    "percentunit",
                ),
                "Next batch is worth": (Query(f"max by (campaign) (al_expected_gain{{{_CHOSEN}}})"), "percentunit"),
                "Promoted version": (Query(f"max by (campaign) (al_promoted_version{{{_CHOSEN}}})"), "none"),
                "Serving version": (
                    Query(
                        'max by (campaign) (label_replace(inference_current_version{model=~"$campaign"},'
                        ' "campaign", "$1", "model", "(.+)"))'
                    ),
                    "none",
                ),
            },
            "There are no campaigns yet",
            drop=("Value #A",),
        ),
        lines(
            "Round over time",
            "Newest round that is done: a line that has long been level is a campaign that waits or has ended.",
            [Query(f"campaign:round:latest{{{_CHOSEN}}}", "{{campaign}}")],
            "none",
            "There are no campaigns yet",
            steps=True,
            minimum=0,
            decimals=0,
        ),
    ],
)

CAMPAIGN = Dashboard(
    uid="querent-campaign",
    title="Querent: campaign",
    description="Accuracy, calibration and cost of active-learning campaigns by round, and against the labels "
    "they bought.",
    rows=[_AT_A_GLANCE, _BY_ROUND, _LABELS, _QUERIES, _COST, _COMPARED],
    variables=[Variable("campaign", "Campaign", "label_values(al_campaign_state, campaign)")],
    since="now-24h",
)
