"""The plans of the invented abstracts, as data: titles and sections, drawing on wording.py.

Slots and choices are written as there.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """A kind of abstract: its titles and, by section, how many lists it draws from which."""

    titles: tuple[str, ...]
    sections: dict[str, tuple[tuple[int, tuple[str, ...]], ...]]


PLANS = (
    Plan(  # a family study
        titles=(
            "{gene} mutations in {disease}: a [study of {families} families|family study]",
            "Mutations in {gene} [cause|underlie] {disease}",
            "[Molecular genetics|Genetic basis] of {disease}",
            "{inheritance} {disease}: clinical and genetic [findings|features]",
        ),
        sections={
            "BACKGROUND": ((3, ("organ", "symptom", "treatment")),),
            "METHODS": ((1, ("family methods",)), (1, ("sequencing",))),
            "RESULTS": ((3, ("gene", "inheritance", "protein")),),
            "CONCLUSIONS": ((2, ("family advice",)),),
        },
    ),
    Plan(  # a trial
        titles=(
            "{drug} for {disease}: the {trial} [trial|randomized trial]",
            "[Efficacy|Efficacy and safety] of {drug} in {disease}",
            "A [randomized|placebo-controlled|double-blind] trial of {drug} in {disease} ({trial})",
            "{drug} or placebo in [patients|adults] with {disease}",
        ),
        sections={
            "BACKGROUND": (
                (2, ("organ", "symptom", "gene")),
                (1, ("drug_class", "mechanism", "target")),
            ),
            "METHODS": ((1, ("design",)), (2, ("trial methods",))),
            "RESULTS": ((1, ("response",)), (1, ("adverse_effect",))),
            "CONCLUSIONS": ((1, ("trial conclusion",)),),
        },
    ),
    Plan(  # a cohort study
        titles=(
            "[Clinical features|Clinical course|Natural history] of {disease}",
            "{disease}: a [cohort|registry] study of {cohort} patients",
            "[Presentation|Presentation and treatment|Long-term outcome] of {disease}",
            "{symptom} in {disease}: a retrospective study",
        ),
        sections={
            "BACKGROUND": ((3, ("organ", "inheritance", "gene")),),
            "METHODS": ((1, ("cohort methods",)),),
            "RESULTS": (
                (1, ("symptom",)),
                (1, ("cohort results",)),
                (2, ("treatment", "adverse_effect")),
            ),
            "CONCLUSIONS": ((2, ("cohort conclusion",)),),
        },
    ),
    Plan(  # a laboratory study
        titles=(
            "{drug} [targets|acts on] {protein} in {disease}",
            "[Mechanism of action|Pharmacology|Molecular target] of {drug}",
            "{gene}, {protein} and the [biology|pathogenesis] of {disease}",
            "[Role|Function] of {protein} in {disease}",
        ),
        sections={
            "BACKGROUND": (
                (1, ("organ", "inheritance")),
                (1, ("gene",)),
                (1, ("treatment", "drug_class", "evidence")),
            ),
            "METHODS": ((2, ("laboratory methods",)),),
            "RESULTS": ((2, ("protein", "target")), (1, ("laboratory results",))),
            "CONCLUSIONS": ((1, ("laboratory conclusion",)),),
        },
    ),
    Plan(  # a case report
        titles=(
            "{symptom} as the first sign of {disease}: a case report",
            "A {person} with {symptom}: {disease} treated with {drug}",
            "{disease} in a {age}-year-old {person}",
            "{adverse_effect} during treatment of {disease} with {drug}",
        ),
        sections={
            "BACKGROUND": ((2, ("organ", "inheritance", "gene")),),
            "CASE REPORT": (
                (1, ("case history",)),
                (1, ("case diagnosis",)),
                (1, ("case treatment",)),
            ),
            "DISCUSSION": (
                (1, ("adverse_effect", "symptom")),
                (1, ("mechanism", "protein")),
                (1, ("evidence", "inheritance", "treatment")),
            ),
            "CONCLUSIONS": ((1, ("case lesson",)),),
        },
    ),
    Plan(  # a review
        titles=(
            "{disease}: a [review|short review]",
            "[Diagnosis and treatment|Genetics and therapy|Current management] of {disease}",
            "[Advances in|Update on] {disease}",
        ),
        sections={
            "BACKGROUND": ((2, ("organ", "symptom")), (1, ("review methods",))),
            "GENETICS": ((1, ("inheritance", "gene")), (1, ("protein",))),
            "TREATMENT": ((1, ("treatment",)), (3, ("mechanism", "adverse_effect", "evidence"))),
            "CONCLUSIONS": ((1, ("cohort conclusion",)),),
        },
    ),
)
