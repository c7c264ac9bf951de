SELECT pg_catalog.set_config('search_path', '', false);
CREATE FUNCTION public.events_append_only() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
  IF TG_OP = 'DELETE' AND OLD.seq <= coalesce((SELECT CAST(value AS BIGINT) FROM meta WHERE key = 'events_horizon'), 0) THEN
    RETURN OLD;
  END IF;
  RAISE EXCEPTION 'events are append-only';
END $$;
CREATE TABLE public.alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE public.allocations (
    uuid text NOT NULL,
    state text NOT NULL,
    pool text NOT NULL,
    model text NOT NULL,
    place json,
    native_id text,
    native_state text NOT NULL,
    gpus bigint NOT NULL,
    job_id text,
    reserved_for text,
    created_at double precision NOT NULL,
    submitted_at double precision,
    started_at double precision,
    warm_at double precision,
    idle_since double precision,
    state_since double precision NOT NULL,
    ended_at double precision,
    ends_at double precision,
    node text,
    host text,
    address text,
    admitted boolean NOT NULL,
    suspect_since double precision,
    drain boolean NOT NULL,
    "order" json,
    status json,
    end_reason text,
    updated_at double precision NOT NULL,
    end_cause text,
    end_detail text
);
CREATE TABLE public.bank_entries (
    bank text NOT NULL,
    shelf text NOT NULL,
    entry text NOT NULL,
    model text NOT NULL,
    kind text NOT NULL,
    task text NOT NULL,
    source text NOT NULL,
    owner text NOT NULL,
    licence text NOT NULL,
    version text NOT NULL,
    ita bigint,
    created text NOT NULL,
    outcomes json NOT NULL,
    updated_at double precision NOT NULL
);
CREATE TABLE public.events (
    seq bigint NOT NULL,
    at double precision NOT NULL,
    kind text NOT NULL,
    job_id text,
    allocation text,
    cause text NOT NULL,
    data json
);
CREATE SEQUENCE public.events_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.events_seq_seq OWNED BY public.events.seq;
CREATE TABLE public.jobs (
    id text NOT NULL,
    name text NOT NULL,
    owner text NOT NULL,
    state text NOT NULL,
    spec json NOT NULL,
    pool text NOT NULL,
    model text NOT NULL,
    submitted_at double precision NOT NULL,
    deadline_at double precision,
    priority bigint NOT NULL,
    min_gpus bigint NOT NULL,
    max_gpus bigint NOT NULL,
    best_effort boolean NOT NULL,
    on_miss text NOT NULL,
    scale_to bigint,
    generation bigint NOT NULL,
    plan_generation bigint NOT NULL,
    members json NOT NULL,
    lookup_done boolean NOT NULL,
    lookup json,
    initial_prompt text NOT NULL,
    step bigint NOT NULL,
    metric double precision,
    best double precision,
    evaluations json,
    ita bigint,
    iters_mid double precision,
    iters_hi double precision,
    iters_per_s double precision,
    first_step_at double precision,
    started_at double precision,
    state_since double precision NOT NULL,
    finished_at double precision,
    outcome text,
    error text,
    note text NOT NULL,
    crash_count bigint NOT NULL,
    gpu_seconds double precision NOT NULL,
    purged boolean NOT NULL,
    history json NOT NULL,
    updated_at double precision NOT NULL,
    lookup_budget_s double precision,
    train_loss double precision,
    eval_loss double precision
);
CREATE TABLE public.leases (
    id bigint NOT NULL,
    job_id text NOT NULL,
    allocation text NOT NULL,
    generation bigint NOT NULL,
    rank bigint NOT NULL,
    granted_at double precision NOT NULL,
    ended_at double precision,
    end_reason text,
    steps bigint NOT NULL
);
CREATE SEQUENCE public.leases_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE public.leases_id_seq OWNED BY public.leases.id;
CREATE TABLE public.meta (
    key text NOT NULL,
    value text NOT NULL
);
CREATE TABLE public.node_faults (
    node text NOT NULL,
    faults bigint NOT NULL,
    excluded_until double precision NOT NULL,
    reason text NOT NULL,
    updated_at double precision NOT NULL
);
CREATE TABLE public.ownership (
    id bigint NOT NULL,
    generation bigint NOT NULL,
    owner text,
    host text NOT NULL,
    machine text NOT NULL,
    pid bigint NOT NULL,
    pid_start text NOT NULL,
    command text NOT NULL,
    beat bigint NOT NULL,
    ttl_s double precision NOT NULL,
    acquired_at double precision,
    renewed_at double precision,
    expires_at double precision,
    last_write text NOT NULL
);
CREATE TABLE public.pool_trials (
    pool text NOT NULL,
    failures bigint NOT NULL,
    paused_until double precision NOT NULL,
    nodes json NOT NULL,
    cause text NOT NULL,
    reason text NOT NULL,
    allocation text,
    settings text NOT NULL,
    updated_at double precision NOT NULL
);
CREATE TABLE public.requests (
    id text NOT NULL,
    kind text NOT NULL,
    at double precision NOT NULL,
    by text NOT NULL,
    applied_at double precision NOT NULL,
    ok boolean NOT NULL,
    message text NOT NULL,
    data json
);
CREATE TABLE public.speed_profiles (
    pool text NOT NULL,
    model text NOT NULL,
    members bigint NOT NULL,
    iters_per_s double precision NOT NULL,
    samples bigint NOT NULL,
    origin text NOT NULL,
    updated_at double precision NOT NULL
);
CREATE TABLE public.startup_profiles (
    pool text NOT NULL,
    model text NOT NULL,
    kind text NOT NULL,
    seconds double precision NOT NULL,
    samples bigint NOT NULL,
    origin text NOT NULL,
    updated_at double precision NOT NULL
);
ALTER TABLE ONLY public.events ALTER COLUMN seq SET DEFAULT nextval('public.events_seq_seq'::regclass);
ALTER TABLE ONLY public.leases ALTER COLUMN id SET DEFAULT nextval('public.leases_id_seq'::regclass);
INSERT INTO public.alembic_version VALUES ('0003');
INSERT INTO public.allocations VALUES ('u2', 'starting', 'gpt2@a100', 'gpt2', NULL, '17', '', 1, NULL, NULL, 1001, NULL, NULL, NULL, NULL, 1010, NULL, NULL, NULL, NULL, NULL, false, NULL, false, NULL, NULL, NULL, 1010, NULL, NULL);
INSERT INTO public.allocations VALUES ('u1', 'busy', 'gpt2@a100', 'gpt2', NULL, '17', '', 1, 'j-run', NULL, 1001, NULL, NULL, NULL, NULL, 1020, NULL, NULL, NULL, NULL, NULL, false, NULL, false, NULL, NULL, NULL, 1020, NULL, NULL);
INSERT INTO public.allocations VALUES ('u0', 'ended', 'gpt2@a100', 'gpt2', NULL, '17', '', 1, NULL, NULL, 1001, NULL, NULL, NULL, NULL, 1200, 1200, NULL, NULL, NULL, NULL, false, NULL, false, NULL, NULL, NULL, 1200, NULL, NULL);
INSERT INTO public.bank_entries VALUES ('/bank', 'gpt2', 'h1', 'gpt2', 'soft', '', '', '', '', '', NULL, '', '[["j-done",true,120]]', 1300);
INSERT INTO public.bank_entries VALUES ('/bank', 'gpt2', 'h2', 'gpt2', 'soft', '', '', '', '', '', NULL, '', '[["j-done",true,120]]', 1300);
INSERT INTO public.events VALUES (1, 1000, 'job.submitted', 'j-done', NULL, 'submitted by ada', '{"state":"queued"}');
INSERT INTO public.events VALUES (2, 1000, 'job.submitted', 'j-run', NULL, 'submitted by ada', '{"state":"queued"}');
INSERT INTO public.events VALUES (3, 1000, 'job.submitted', 'j-queued', NULL, 'submitted by ada', '{"state":"queued"}');
INSERT INTO public.events VALUES (4, 1000, 'job.submitted', 'j-held', NULL, 'submitted by ada', '{"state":"held"}');
INSERT INTO public.events VALUES (5, 1001, 'allocation.intent', NULL, 'u0', 'two jobs wait', '{"pool":"gpt2@a100","gpus":1}');
INSERT INTO public.events VALUES (6, 1001, 'allocation.intent', NULL, 'u1', 'two jobs wait', '{"pool":"gpt2@a100","gpus":1}');
INSERT INTO public.events VALUES (7, 1001, 'allocation.intent', NULL, 'u2', 'two jobs wait', '{"pool":"gpt2@a100","gpus":1}');
INSERT INTO public.events VALUES (8, 1010, 'allocation.starting', NULL, 'u0', 'Slurm started it', '{"from":"intent"}');
INSERT INTO public.events VALUES (9, 1010, 'allocation.starting', NULL, 'u1', 'Slurm started it', '{"from":"intent"}');
INSERT INTO public.events VALUES (10, 1010, 'allocation.starting', NULL, 'u2', 'Slurm started it', '{"from":"intent"}');
INSERT INTO public.events VALUES (11, 1020, 'allocation.busy', 'j-done', 'u0', 'leased', '{"from":"starting"}');
INSERT INTO public.events VALUES (12, 1020, 'allocation.busy', 'j-run', 'u1', 'leased', '{"from":"starting"}');
INSERT INTO public.events VALUES (13, 1020, 'job.running', 'j-done', NULL, 'has a GPU', '{"from":"queued"}');
INSERT INTO public.events VALUES (14, 1020, 'lease.granted', 'j-done', NULL, 'deadline', '{"generation":1,"members":["u0"]}');
INSERT INTO public.events VALUES (15, 1020, 'job.running', 'j-run', NULL, 'has a GPU', '{"from":"queued"}');
INSERT INTO public.events VALUES (16, 1020, 'lease.granted', 'j-run', NULL, 'deadline', '{"generation":1,"members":["u1"]}');
INSERT INTO public.events VALUES (17, 1100, 'job.done', 'j-done', NULL, 'target reached', '{"from":"running"}');
INSERT INTO public.events VALUES (18, 1200, 'allocation.ended', NULL, 'u0', 'idle for too long', '{"from":"busy"}');
INSERT INTO public.events VALUES (19, 1201, 'slurm.refused', NULL, 'u2', 'quota', NULL);
INSERT INTO public.jobs VALUES ('j-queued', 'it''s', 'ada', 'queued', '{}', 'gpt2@a100', 'gpt2', 1000, NULL, -3, 1, 1, false, 'continue', NULL, 0, 0, '[]', false, NULL, '', 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1000, NULL, NULL, NULL, '', 0, 0, false, '[]', 1000, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES ('j-held', '', 'ada', 'held', '{}', 'gpt2@a100', 'gpt2', 1000, NULL, 0, 1, 1, true, 'continue', NULL, 0, 0, '[]', false, NULL, '', 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1000, NULL, NULL, NULL, '', 0, 0, false, '[]', 1000, NULL, NULL, NULL);
INSERT INTO public.jobs VALUES ('j-done', '', 'ada', 'done', '{"target":"loss<=1.5","text":"\u00fcn\u00ef \"quoted\" \u0000"}', 'gpt2@a100', 'gpt2', 1000, NULL, 0, 1, 1, false, 'continue', NULL, 1, 0, '[]', false, NULL, '', 120, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1100, 1100, NULL, NULL, '', 0, 0, false, '[]', 1100, NULL, NULL, 1.25);
INSERT INTO public.jobs VALUES ('j-run', '', 'ada', 'running', '{"n":[1,2.5,null,true]}', 'gpt2@a100', 'gpt2', 1000, 5000.25, 0, 1, 4, false, 'continue', NULL, 1, 0, '["u1"]', false, '{"best":"h1"}', '', 0, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1020, NULL, NULL, NULL, '', 0, 0, false, '[[1020.0,1]]', 1200, NULL, NULL, NULL);
INSERT INTO public.leases VALUES (2, 'j-run', 'u1', 1, 0, 1020, NULL, NULL, 0);
INSERT INTO public.leases VALUES (1, 'j-done', 'u0', 1, 0, 1020, 1100, 'target reached', 0);
INSERT INTO public.meta VALUES ('home_id', 'e9bf84d788fa4a07bb7c58f17f64b4ef');
INSERT INTO public.meta VALUES ('schema_made_by', '0.1.0');
INSERT INTO public.ownership VALUES (1, 1795904785, NULL, 'vm', '213e999a-1040-4e73-8607-c27297c9c119/pid:[4026531836]', 19200, '212874', 'make.py', 5, 60, 1795904785.6241784, 1795904785.9009256, NULL, 'eda68fe3d6c648baa0ab48da3a193fc6');
INSERT INTO public.requests VALUES ('r1', 'hold', 999, 'ada', 1000, true, 'held', '{"job":"j-held"}');
INSERT INTO public.speed_profiles VALUES ('gpt2@a100', 'gpt2', 1, 1.5, 3, 'measured', 1300);
INSERT INTO public.speed_profiles VALUES ('gpt2@a100', 'gpt2', 2, 3, 3, 'measured', 1300);
INSERT INTO public.startup_profiles VALUES ('gpt2@a100', 'gpt2', 'warm', 0.75, 3, 'measured', 1300);
SELECT pg_catalog.setval('public.events_seq_seq', 19, true);
SELECT pg_catalog.setval('public.leases_id_seq', 2, true);
ALTER TABLE ONLY public.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY public.allocations
    ADD CONSTRAINT pk_allocations PRIMARY KEY (uuid);
ALTER TABLE ONLY public.bank_entries
    ADD CONSTRAINT pk_bank_entries PRIMARY KEY (bank, shelf, entry);
ALTER TABLE ONLY public.events
    ADD CONSTRAINT pk_events PRIMARY KEY (seq);
ALTER TABLE ONLY public.jobs
    ADD CONSTRAINT pk_jobs PRIMARY KEY (id);
ALTER TABLE ONLY public.leases
    ADD CONSTRAINT pk_leases PRIMARY KEY (id);
ALTER TABLE ONLY public.meta
    ADD CONSTRAINT pk_meta PRIMARY KEY (key);
ALTER TABLE ONLY public.node_faults
    ADD CONSTRAINT pk_node_faults PRIMARY KEY (node);
ALTER TABLE ONLY public.ownership
    ADD CONSTRAINT pk_ownership PRIMARY KEY (id);
ALTER TABLE ONLY public.pool_trials
    ADD CONSTRAINT pk_pool_trials PRIMARY KEY (pool);
ALTER TABLE ONLY public.requests
    ADD CONSTRAINT pk_requests PRIMARY KEY (id);
ALTER TABLE ONLY public.speed_profiles
    ADD CONSTRAINT pk_speed_profiles PRIMARY KEY (pool, model, members);
ALTER TABLE ONLY public.startup_profiles
    ADD CONSTRAINT pk_startup_profiles PRIMARY KEY (pool, model, kind);
CREATE INDEX ix_allocations_ended_at ON public.allocations USING btree (ended_at);
CREATE INDEX ix_allocations_job_id ON public.allocations USING btree (job_id);
CREATE INDEX ix_allocations_state ON public.allocations USING btree (state);
CREATE INDEX ix_events_allocation_seq ON public.events USING btree (allocation, seq);
CREATE INDEX ix_events_at ON public.events USING btree (at);
CREATE INDEX ix_events_job_id_seq ON public.events USING btree (job_id, seq);
CREATE INDEX ix_events_kind_seq ON public.events USING btree (kind, seq);
CREATE INDEX ix_jobs_behind ON public.jobs USING btree (id) WHERE (plan_generation < generation);
CREATE INDEX ix_jobs_finished_at ON public.jobs USING btree (finished_at);
CREATE INDEX ix_jobs_pool_submitted_at ON public.jobs USING btree (pool, submitted_at);
CREATE INDEX ix_jobs_purged ON public.jobs USING btree (id) WHERE purged;
CREATE INDEX ix_jobs_state_submitted_at ON public.jobs USING btree (state, submitted_at);
CREATE INDEX ix_leases_allocation ON public.leases USING btree (allocation);
CREATE INDEX ix_leases_ended_at ON public.leases USING btree (ended_at);
CREATE INDEX ix_leases_job_id_generation ON public.leases USING btree (job_id, generation);
CREATE INDEX ix_requests_applied_at ON public.requests USING btree (applied_at);
CREATE TRIGGER events_append_only BEFORE DELETE OR UPDATE ON public.events FOR EACH ROW EXECUTE FUNCTION public.events_append_only();
ALTER TABLE ONLY public.allocations
    ADD CONSTRAINT fk_allocations_job_id FOREIGN KEY (job_id) REFERENCES public.jobs(id) ON DELETE SET NULL;
ALTER TABLE ONLY public.leases
    ADD CONSTRAINT fk_leases_allocation FOREIGN KEY (allocation) REFERENCES public.allocations(uuid) ON DELETE CASCADE;
ALTER TABLE ONLY public.leases
    ADD CONSTRAINT fk_leases_job_id FOREIGN KEY (job_id) REFERENCES public.jobs(id) ON DELETE CASCADE;
