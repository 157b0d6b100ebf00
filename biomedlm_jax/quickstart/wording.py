"""The wording of the invented abstracts, as data: sentences by what they say.

`{slot}` takes a fact's value, or a detail that is no fact (`few`, `age`...); `[a|b]` is a choice.
`{it}` is the disease by its name or, once it was named, as "the disease" or "this condition";
`{disease}` is its name. Sentences that state a fact are listed under its relation, and the first
of each list ends in the value: without its end it is a question to a language model.

Percentages and numbers of weeks in figures are those of the trial; nothing else is counted so.
"""

STATEMENTS = {
    "organ": (
        "The organ that {disease} damages is the {organ}.",
        "{it} is a [rare|chronic|progressive|hereditary] [disease|disorder] of the {organ}.",
        "{it} [primarily|mainly|chiefly] affects the {organ}.",
        "The {organ} is the [main|principal|first] organ [affected by|involved in] {it}.",
        "In {it}, [damage|injury] is largely confined to the {organ}.",
        "{it} leads to [progressive|irreversible|slow] failure of the {organ}.",
        "[Biopsy|Imaging|Microscopy] of the {organ} confirms the diagnosis of {it}.",
    ),
    "symptom": (
        "The [main|cardinal|leading] symptom of {disease} is {symptom}.",
        "[Patients|People|Individuals] with {it} [usually|typically|often] present with {symptom}.",
        "{symptom} is the [most common|most frequent|usual] [complaint|presentation] in {it}.",
        "{it} [typically|usually|classically] begins with {symptom}.",
        "{symptom} is [characteristic|typical|the hallmark] of {it}.",
        "Patients with {it} [most often complain of|usually seek care for] {symptom}.",
    ),
    "inheritance": (
        "The inheritance of {disease} is {inheritance}.",
        "{it} is inherited in an {inheritance} [manner|fashion|pattern].",
        "{it} follows an {inheritance} pattern of inheritance.",
        "{disease} is an {inheritance} [disease|disorder|trait].",
        "The pattern of inheritance of {it} is {inheritance}.",
    ),
    "gene": (
        "{disease} is caused by [mutations|pathogenic variants] in {gene}.",
        "[Mutations in|Pathogenic variants of|Defects of] {gene} cause {it}.",
        "[Mutation|Loss] of {gene} is the cause of {it}.",
        "The [causal|causative|responsible] gene of {it} is {gene}.",
        "{gene} is the gene [responsible for|mutated in|that causes] {it}.",
        "{it} results from [a defect|defects|mutations] in the {gene} gene.",
    ),
    "treatment": (
        "The [first-line|standard] treatment of {disease} is {drug}.",
        "{drug} is the [first-line|standard first-line|recommended] [drug|treatment|therapy] for "
        "{it}.",
        "[Guidelines|Current guidelines|Experts] recommend {drug} as first-line treatment of {it}.",
        "Patients with {it} are [first|initially] treated with {drug}.",
        "{it} is [treated|managed] with {drug} as the [first choice|first-line drug].",
        "First-line therapy of {it} [consists of|is] {drug}.",
    ),
    "protein": (
        "The protein encoded by {gene} is {protein}.",
        "{gene} encodes {protein}.",
        "{gene} encodes the protein {protein}, which is [abundant|expressed] in the {organ}.",
        "The [product|gene product] of {gene} is the protein {protein}.",
        "{protein} is the protein [product of|encoded by] {gene}.",
    ),
    "target": (
        "The [molecular target|target] of {drug} is {protein}.",
        "{drug} [targets|binds|acts on] {protein}.",
        "{drug} [lowers|reduces|modulates] the activity of {protein}.",
        "{protein} is the [target|molecular target] of {drug}.",
    ),
    "drug_class": (
        "{drug} is {a_drug_class}.",
        "{drug} is {a_drug_class} [developed for|used in|studied in] {it}.",
        "{drug}, {a_drug_class}, is [given|used] in {it}.",
    ),
    "mechanism": (  # class and target in one sentence
        "{drug} is {a_drug_class} that [targets|acts on|binds] {protein}.",
        "{drug}, {a_drug_class}, [targets|acts on|binds] {protein}.",
        "{protein} is the target of {drug}, {a_drug_class}.",
    ),
    "adverse_effect": (
        "The [most common|most frequent|main] adverse effect of {drug} is {adverse_effect}.",
        "{adverse_effect} is the most [common|frequent] adverse [effect|event] of {drug}.",
        "{drug} [frequently|often|commonly] causes {adverse_effect}.",
        "Treatment with {drug} is [often|chiefly|mainly] complicated by {adverse_effect}.",
        "The [main|principal] [safety concern|side effect] with {drug} is {adverse_effect}.",
    ),
    "evidence": (  # a trial's drug and disease
        "The {trial} trial [compared {drug} with|tested {drug} against] placebo in {disease}.",
        "In the {trial} trial, {drug} was [superior to|better than] placebo in {it}.",
        "The {trial} trial [showed|established] the [benefit|efficacy] of {drug} in {it}.",
        "Evidence for {drug} in {it} comes from the {trial} trial.",
    ),
    "design": (  # a trial's disease, drug, participants and weeks
        "The {trial} trial [randomly assigned|randomized] {participants} patients with {disease} "
        "to {drug} or placebo for {weeks} weeks.",
        "In the {trial} trial, {participants} patients with {disease} [received|were given] {drug} "
        "or placebo for {weeks} weeks.",
        "{trial} was a [double-blind|randomized, double-blind|multicenter] trial that compared "
        "{drug} with placebo over {weeks} weeks in {participants} patients with {disease}.",
        "We [enrolled|recruited] {participants} patients with {disease} in the {trial} trial of "
        "{drug} against placebo, which lasted {weeks} weeks.",
    ),
    "response": (  # both rates of a trial
        "A response was [seen|observed|recorded] in {drug_response} of patients given {drug} and "
        "in {placebo_response} of patients given placebo in {trial}.",
        "In {trial}, {drug_response} of patients responded to {drug}, compared with "
        "{placebo_response} of patients given placebo (P < 0.001).",
        "The response rate in {trial} was {drug_response} with {drug} and {placebo_response} with "
        "placebo (P < 0.001).",
        "[At week {weeks}|After {weeks} weeks], {drug_response} of the {drug} group in {trial} and "
        "{placebo_response} of the placebo group had [responded|a response] (P < 0.001).",
    ),
}

# What a study found: the same facts in wordings that only fit a section of results.
FINDINGS = {
    "symptom": (
        "The first [sign|manifestation] of {it} was {symptom} in [most|nearly all] patients.",
        "{symptom} was the [main|leading|most common] symptom at the diagnosis of {it}.",
        "Most patients with {it} [reported|had] {symptom}.",
    ),
    "inheritance": (
        "[Pedigrees|Family trees] were consistent with {inheritance} inheritance of {it}.",
        "Segregation analysis [supported|confirmed|indicated] {inheritance} inheritance of {it}.",
    ),
    "gene": (
        "[Sequencing|Exome sequencing] [revealed|identified|showed] {gene} mutations in "
        "[all|the] patients with {it}.",
        "Every [affected|symptomatic] relative carried a {gene} mutation, the cause of {it}.",
    ),
    "treatment": (
        "Most patients with {it} [received|were given|started treatment with] {drug}, the "
        "[first-line|recommended] drug.",
    ),
    "protein": (
        "{protein}, the [product|gene product] of {gene}, was [found|detected] in [healthy|normal] "
        "tissue of the {organ}.",
        "Loss of {gene} [abolished|reduced] [expression|production] of its product, {protein}.",
    ),
    "target": (
        "[Binding|Specific binding] of {drug} to its target {protein} was [confirmed|shown] "
        "[in vitro|in cultured cells|by mass spectrometry].",
    ),
    "adverse_effect": (
        "[Dose reduction|Discontinuation] of {drug} was [mostly|usually] due to {adverse_effect}.",
        "{adverse_effect} was [reported more often|more common] with {drug} than with other "
        "[drugs|treatments].",
    ),
}

# Sentences around the facts: how it was done and what it means.
FILLERS = {
    "family methods": (
        "We [examined|studied|evaluated] {families} [unrelated|large|consanguineous] families with "
        "{some} affected [members|relatives].",
        "A total of {some} [patients|relatives] from {families} families [were examined|gave "
        "blood samples].",
        "Family histories were [obtained|recorded] from {some} [index patients|probands] of "
        "{families} families.",
    ),
    "sequencing": (
        "[Exome|Whole-genome] sequencing was [performed|carried out] in {some} [affected|"
        "symptomatic] [relatives|individuals].",
        "Candidate variants were [confirmed|verified] by Sanger sequencing.",
        "Linkage analysis and exome sequencing were [combined|performed].",
        "DNA was extracted from blood and [sequenced|genotyped] in [duplicate|one laboratory].",
    ),
    "family advice": (
        "[Genetic counseling|Genetic testing for {gene}] should be offered to [relatives|families|"
        "parents].",
        "These [findings|results] [support|justify] testing of {gene} in [relatives|patients] with "
        "{symptom}.",
        "Our [findings|data|results] establish {gene} as the gene for {disease}.",
        "Early [diagnosis|testing] may [prevent|delay] damage to the {organ}.",
    ),
    "trial methods": (
        "The primary [outcome|endpoint] was a [clinical response|response] at the end of "
        "treatment.",
        "[Patients|Participants] and [investigators|assessors] were blinded to treatment.",
        "Randomization was stratified by [age|sex|center|disease severity].",
        "The trial was [conducted|performed] at {some} [centers|hospitals] in {few} countries.",
        "Analysis was by [intention to treat|the intention-to-treat principle].",
    ),
    "trial conclusion": (
        "{drug} [was superior to|was more effective than|improved outcomes over] placebo in "
        "{disease}.",
        "These [results|findings|data] [support|confirm] {drug} as first-line treatment of "
        "{disease}.",
        "{drug} [was effective|improved {symptom}] in [patients|adults] with {disease}.",
        "Compared with placebo, {drug} [relieved {symptom}|protected the {organ}] in {disease}.",
    ),
    "cohort methods": (
        "We [reviewed|analyzed|examined] the [records|charts] of {cohort} patients seen at {few} "
        "[hospitals|centers|clinics].",
        "A total of {cohort} patients were [enrolled in|included in] a [national|regional|"
        "hospital] registry and followed for {years} years.",
        "In this [retrospective|multicenter] [study|cohort], {cohort} patients were followed for a "
        "median of {years} years.",
        "Data on {cohort} [consecutive|adult] patients were [collected|retrieved] from {few} "
        "[hospitals|registries].",
    ),
    "cohort results": (
        "[Women and men|Both sexes|Children and adults] were [equally|similarly] affected.",
        "The median age at [onset|diagnosis] was {age} years.",
        "The diagnosis was [made|established] after a median delay of {years} years.",
        "{symptom} [improved|resolved] in most patients during follow-up.",
    ),
    "cohort conclusion": (
        "[Clinicians|Physicians] should [suspect|consider] {disease} in patients with "
        "[unexplained {symptom}|{symptom}].",
        "[Early|Prompt] treatment with {drug} may [preserve|protect] the {organ}.",
        "[Long-term|Regular] monitoring for {adverse_effect} is [advised|recommended] in patients "
        "taking {drug}.",
        "[Larger|Longer|Further] studies of {disease} are [needed|warranted].",
    ),
    "laboratory methods": (
        "[Cells|Fibroblasts|Tissue samples] from {some} patients and {some} [controls|healthy "
        "donors] were [analyzed|cultured].",
        "[Knockout mice|Patient-derived cells|Organoids] lacking {gene} were [generated|studied].",
        "Protein levels were measured by [Western blotting|immunoassay|mass spectrometry].",
        "We used [structural|biochemical] methods and a mouse model of {it}.",
        "Cells were exposed to {drug} at {few} concentrations.",
    ),
    "laboratory results": (
        "{drug} [restored|normalized] [cell growth|cell survival|tissue structure] in the [mutant|"
        "{gene}-deficient] cells.",
        "Mice lacking {gene} developed {symptom} [within|after] {few} months.",
        "The effect of {drug} was [dose-dependent|reversible|abolished by deletion of {gene}].",
        "Cells from [controls|healthy donors] were not affected.",
    ),
    "laboratory conclusion": (
        "These [findings|results|data] explain [how|why] {drug} is effective in {disease}.",
        "Our [findings|results|data] link {gene} to the [biology|pathogenesis] of {disease}.",
        "[Inhibition|Modulation] of {protein} is a [rational|promising] approach to {disease}.",
        "The work [clarifies|explains] the mechanism by which {drug} protects the {organ}.",
    ),
    "case history": (
        "A {age}-year-old {person} [presented|was admitted|was referred] with [a history of|"
        "worsening|severe] {symptom}.",
        "We [report|describe] a {age}-year-old {person} with {symptom} of {few} [months|weeks]' "
        "duration.",
        "A {person} aged {age} years [developed|reported] {symptom} after [an infection|a journey|"
        "surgery|years of good health].",
    ),
    "case diagnosis": (
        "[Imaging|Biopsy] showed [damage to|inflammation of|scarring of] the {organ}, and "
        "{disease} was [diagnosed|confirmed].",
        "A mutation in {gene} was found, and {disease} was diagnosed.",
        "[Genetic testing|Sequencing] [showed|revealed] a {gene} mutation, which [confirmed|"
        "established] {disease}.",
    ),
    "case treatment": (
        "{pronoun} was treated with {drug}, the first-line drug for {it}, and [improved|"
        "recovered] within {few} [weeks|months].",
        "Treatment with {drug} was [started|begun], and {symptom} [resolved|subsided].",
        "{pronoun} received {drug} and [remained well|was discharged] {few} [weeks|months] later.",
    ),
    "case lesson": (
        "This case shows that {symptom} may be the [first|only] sign of {disease}.",
        "{disease} should be [considered|suspected] in patients with {symptom}.",
        "[Prompt|Early] recognition of {disease} allows [timely|early] treatment with {drug}.",
    ),
    "review methods": (
        "We [searched|reviewed] the literature and [selected|included] {many} [articles|reports].",
        "This review [summarizes|discusses] [recent|current] knowledge of {it}.",
        "We [discuss|review|summarize] the [genetics and treatment|diagnosis and therapy] of {it}.",
    ),
}
