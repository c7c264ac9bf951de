BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0003');
CREATE TABLE allocations (
	uuid TEXT NOT NULL, 
	state TEXT NOT NULL, 
	pool TEXT NOT NULL, 
	model TEXT NOT NULL, 
	place JSON, 
	native_id TEXT, 
	native_state TEXT NOT NULL, 
	gpus INTEGER NOT NULL, 
	job_id TEXT, 
	reserved_for TEXT, 
	created_at DOUBLE NOT NULL, 
	submitted_at DOUBLE, 
	started_at DOUBLE, 
	warm_at DOUBLE, 
	idle_since DOUBLE, 
	state_since DOUBLE NOT NULL, 
	ended_at DOUBLE, 
	ends_at DOUBLE, 
	node TEXT, 
	host TEXT, 
	address TEXT, 
	admitted BOOLEAN NOT NULL, 
	suspect_since DOUBLE, 
	drain BOOLEAN NOT NULL, 
	"order" JSON, 
	status JSON, 
	end_reason TEXT, 
	updated_at DOUBLE NOT NULL, end_cause TEXT, end_detail TEXT, 
	CONSTRAINT pk_allocations PRIMARY KEY (uuid), 
	CONSTRAINT fk_allocations_job_id FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE SET NULL
);
INSERT INTO "allocations" VALUES('u0','ended','gpt2@a100','gpt2',NULL,'17','',1,NULL,NULL,1001.0,NULL,NULL,NULL,NULL,1200.0,1200.0,NULL,NULL,NULL,NULL,0,NULL,0,NULL,NULL,NULL,1200.0,NULL,NULL);
INSERT INTO "allocations" VALUES('u1','busy','gpt2@a100','gpt2',NULL,'17','',1,'j-run',NULL,1001.0,NULL,NULL,NULL,NULL,1020.0,NULL,NULL,NULL,NULL,NULL,0,NULL,0,NULL,NULL,NULL,1020.0,NULL,NULL);
INSERT INTO "allocations" VALUES('u2','starting','gpt2@a100','gpt2',NULL,'17','',1,NULL,NULL,1001.0,NULL,NULL,NULL,NULL,1010.0,NULL,NULL,NULL,NULL,NULL,0,NULL,0,NULL,NULL,NULL,1010.0,NULL,NULL);
CREATE TABLE bank_entries (
	bank TEXT NOT NULL, 
	shelf TEXT NOT NULL, 
	entry TEXT NOT NULL, 
	model TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	task TEXT NOT NULL, 
	source TEXT NOT NULL, 
	owner TEXT NOT NULL, 
	licence TEXT NOT NULL, 
	version TEXT NOT NULL, 
	ita INTEGER, 
	created TEXT NOT NULL, 
	outcomes JSON NOT NULL, 
	updated_at DOUBLE NOT NULL, 
	CONSTRAINT pk_bank_entries PRIMARY KEY (bank, shelf, entry)
);
INSERT INTO "bank_entries" VALUES('/bank','gpt2','h1','gpt2','soft','','','','','',NULL,'','[["j-done",true,120]]',1300.0);
INSERT INTO "bank_entries" VALUES('/bank','gpt2','h2','gpt2','soft','','','','','',NULL,'','[["j-done",true,120]]',1300.0);
CREATE TABLE events (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	at DOUBLE NOT NULL, 
	kind TEXT NOT NULL, 
	job_id TEXT, 
	allocation TEXT, 
	cause TEXT NOT NULL, 
	data JSON
);
INSERT INTO "events" VALUES(1,1000.0,'job.submitted','j-done',NULL,'submitted by ada','{"state":"queued"}');
INSERT INTO "events" VALUES(2,1000.0,'job.submitted','j-run',NULL,'submitted by ada','{"state":"queued"}');
INSERT INTO "events" VALUES(3,1000.0,'job.submitted','j-queued',NULL,'submitted by ada','{"state":"queued"}');
INSERT INTO "events" VALUES(4,1000.0,'job.submitted','j-held',NULL,'submitted by ada','{"state":"held"}');
INSERT INTO "events" VALUES(5,1001.0,'allocation.intent',NULL,'u0','two jobs wait','{"pool":"gpt2@a100","gpus":1}');
INSERT INTO "events" VALUES(6,1001.0,'allocation.intent',NULL,'u1','two jobs wait','{"pool":"gpt2@a100","gpus":1}');
INSERT INTO "events" VALUES(7,1001.0,'allocation.intent',NULL,'u2','two jobs wait','{"pool":"gpt2@a100","gpus":1}');
INSERT INTO "events" VALUES(8,1010.0,'allocation.starting',NULL,'u0','Slurm started it','{"from":"intent"}');
INSERT INTO "events" VALUES(9,1010.0,'allocation.starting',NULL,'u1','Slurm started it','{"from":"intent"}');
INSERT INTO "events" VALUES(10,1010.0,'allocation.starting',NULL,'u2','Slurm started it','{"from":"intent"}');
INSERT INTO "events" VALUES(11,1020.0,'allocation.busy','j-done','u0','leased','{"from":"starting"}');
INSERT INTO "events" VALUES(12,1020.0,'allocation.busy','j-run','u1','leased','{"from":"starting"}');
INSERT INTO "events" VALUES(13,1020.0,'job.running','j-done',NULL,'has a GPU','{"from":"queued"}');
INSERT INTO "events" VALUES(14,1020.0,'lease.granted','j-done',NULL,'deadline','{"generation":1,"members":["u0"]}');
INSERT INTO "events" VALUES(15,1020.0,'job.running','j-run',NULL,'has a GPU','{"from":"queued"}');
INSERT INTO "events" VALUES(16,1020.0,'lease.granted','j-run',NULL,'deadline','{"generation":1,"members":["u1"]}');
INSERT INTO "events" VALUES(17,1100.0,'job.done','j-done',NULL,'target reached','{"from":"running"}');
INSERT INTO "events" VALUES(18,1200.0,'allocation.ended',NULL,'u0','idle for too long','{"from":"busy"}');
INSERT INTO "events" VALUES(19,1201.0,'slurm.refused',NULL,'u2','quota',NULL);
CREATE TABLE jobs (
	id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	owner TEXT NOT NULL, 
	state TEXT NOT NULL, 
	spec JSON NOT NULL, 
	pool TEXT NOT NULL, 
	model TEXT NOT NULL, 
	submitted_at DOUBLE NOT NULL, 
	deadline_at DOUBLE, 
	priority INTEGER NOT NULL, 
	min_gpus INTEGER NOT NULL, 
	max_gpus INTEGER NOT NULL, 
	best_effort BOOLEAN NOT NULL, 
	on_miss TEXT NOT NULL, 
	scale_to INTEGER, 
	generation INTEGER NOT NULL, 
	plan_generation INTEGER NOT NULL, 
	members JSON NOT NULL, 
	lookup_done BOOLEAN NOT NULL, 
	lookup JSON, 
	initial_prompt TEXT NOT NULL, 
	step INTEGER NOT NULL, 
	metric DOUBLE, 
	best DOUBLE, 
	evaluations JSON, 
	ita INTEGER, 
	iters_mid DOUBLE, 
	iters_hi DOUBLE, 
	iters_per_s DOUBLE, 
	first_step_at DOUBLE, 
	started_at DOUBLE, 
	state_since DOUBLE NOT NULL, 
	finished_at DOUBLE, 
	outcome TEXT, 
	error TEXT, 
	note TEXT NOT NULL, 
	crash_count INTEGER NOT NULL, 
	gpu_seconds DOUBLE NOT NULL, 
	purged BOOLEAN NOT NULL, 
	history JSON NOT NULL, 
	updated_at DOUBLE NOT NULL, lookup_budget_s DOUBLE, train_loss DOUBLE, eval_loss DOUBLE, 
	CONSTRAINT pk_jobs PRIMARY KEY (id)
);
INSERT INTO "jobs" VALUES('j-done','','ada','done','{"target":"loss<=1.5","text":"\u00fcn\u00ef \"quoted\" \u0000"}','gpt2@a100','gpt2',1000.0,NULL,0,1,1,0,'continue',NULL,1,0,'[]',0,NULL,'',120,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1100.0,1100.0,NULL,NULL,'',0,0.0,0,'[]',1100.0,NULL,NULL,1.25);
INSERT INTO "jobs" VALUES('j-run','','ada','running','{"n":[1,2.5,null,true]}','gpt2@a100','gpt2',1000.0,5000.25,0,1,4,0,'continue',NULL,1,0,'["u1"]',0,'{"best":"h1"}','',0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1020.0,NULL,NULL,NULL,'',0,0.0,0,'[[1020.0,1]]',1200.0,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('j-queued','it''s','ada','queued','{}','gpt2@a100','gpt2',1000.0,NULL,-3,1,1,0,'continue',NULL,0,0,'[]',0,NULL,'',0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1000.0,NULL,NULL,NULL,'',0,0.0,0,'[]',1000.0,NULL,NULL,NULL);
INSERT INTO "jobs" VALUES('j-held','','ada','held','{}','gpt2@a100','gpt2',1000.0,NULL,0,1,1,1,'continue',NULL,0,0,'[]',0,NULL,'',0,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,NULL,1000.0,NULL,NULL,NULL,'',0,0.0,0,'[]',1000.0,NULL,NULL,NULL);
CREATE TABLE leases (
	id INTEGER NOT NULL, 
	job_id TEXT NOT NULL, 
	allocation TEXT NOT NULL, 
	generation INTEGER NOT NULL, 
	rank INTEGER NOT NULL, 
	granted_at DOUBLE NOT NULL, 
	ended_at DOUBLE, 
	end_reason TEXT, 
	steps INTEGER NOT NULL, 
	CONSTRAINT pk_leases PRIMARY KEY (id), 
	CONSTRAINT fk_leases_allocation FOREIGN KEY(allocation) REFERENCES allocations (uuid) ON DELETE CASCADE, 
	CONSTRAINT fk_leases_job_id FOREIGN KEY(job_id) REFERENCES jobs (id) ON DELETE CASCADE
);
INSERT INTO "leases" VALUES(1,'j-done','u0',1,0,1020.0,1100.0,'target reached',0);
INSERT INTO "leases" VALUES(2,'j-run','u1',1,0,1020.0,NULL,NULL,0);
CREATE TABLE meta (
	"key" TEXT NOT NULL, 
	value TEXT NOT NULL, 
	CONSTRAINT pk_meta PRIMARY KEY ("key")
);
INSERT INTO "meta" VALUES('home_id','c92dbf8dd2fe43ad90c2e16147d32ce1');
INSERT INTO "meta" VALUES('schema_made_by','0.1.0');
CREATE TABLE node_faults (
	node TEXT NOT NULL, 
	faults INTEGER NOT NULL, 
	excluded_until DOUBLE NOT NULL, 
	reason TEXT NOT NULL, 
	updated_at DOUBLE NOT NULL, 
	CONSTRAINT pk_node_faults PRIMARY KEY (node)
);
CREATE TABLE ownership (
	id INTEGER NOT NULL, 
	generation INTEGER NOT NULL, 
	owner TEXT, 
	host TEXT NOT NULL, 
	machine TEXT NOT NULL, 
	pid INTEGER NOT NULL, 
	pid_start TEXT NOT NULL, 
	command TEXT NOT NULL, 
	beat INTEGER NOT NULL, 
	ttl_s DOUBLE NOT NULL, 
	acquired_at DOUBLE, 
	renewed_at DOUBLE, 
	expires_at DOUBLE, 
	last_write TEXT NOT NULL, 
	CONSTRAINT pk_ownership PRIMARY KEY (id)
);
INSERT INTO "ownership" VALUES(1,1795904780,NULL,'vm','213e999a-1040-4e73-8607-c27297c9c119/pid:[4026531836]',19200,'212874','make.py',5,60.0,1.7959047808771939278e+09,1.7959047811125006676e+09,NULL,'5b6795e4cc054ebebcfecf7bc1236364');
CREATE TABLE pool_trials (
	pool TEXT NOT NULL, 
	failures INTEGER NOT NULL, 
	paused_until DOUBLE NOT NULL, 
	nodes JSON NOT NULL, 
	cause TEXT NOT NULL, 
	reason TEXT NOT NULL, 
	allocation TEXT, 
	settings TEXT NOT NULL, 
	updated_at DOUBLE NOT NULL, 
	CONSTRAINT pk_pool_trials PRIMARY KEY (pool)
);
CREATE TABLE requests (
	id TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	at DOUBLE NOT NULL, 
	"by" TEXT NOT NULL, 
	applied_at DOUBLE NOT NULL, 
	ok BOOLEAN NOT NULL, 
	message TEXT NOT NULL, 
	data JSON, 
	CONSTRAINT pk_requests PRIMARY KEY (id)
);
INSERT INTO "requests" VALUES('r1','hold',999.0,'ada',1000.0,1,'held','{"job":"j-held"}');
CREATE TABLE speed_profiles (
	pool TEXT NOT NULL, 
	model TEXT NOT NULL, 
	members INTEGER NOT NULL, 
	iters_per_s DOUBLE NOT NULL, 
	samples INTEGER NOT NULL, 
	origin TEXT NOT NULL, 
	updated_at DOUBLE NOT NULL, 
	CONSTRAINT pk_speed_profiles PRIMARY KEY (pool, model, members)
);
INSERT INTO "speed_profiles" VALUES('gpt2@a100','gpt2',1,1.5,3,'measured',1300.0);
INSERT INTO "speed_profiles" VALUES('gpt2@a100','gpt2',2,3.0,3,'measured',1300.0);
CREATE TABLE startup_profiles (
	pool TEXT NOT NULL, 
	model TEXT NOT NULL, 
	kind TEXT NOT NULL, 
	seconds DOUBLE NOT NULL, 
	samples INTEGER NOT NULL, 
	origin TEXT NOT NULL, 
	updated_at DOUBLE NOT NULL, 
	CONSTRAINT pk_startup_profiles PRIMARY KEY (pool, model, kind)
);
INSERT INTO "startup_profiles" VALUES('gpt2@a100','gpt2','warm',0.75,3,'measured',1300.0);
CREATE INDEX ix_jobs_behind ON jobs (id) WHERE plan_generation < generation;
CREATE INDEX ix_jobs_purged ON jobs (id) WHERE purged = 1;
CREATE INDEX ix_jobs_pool_submitted_at ON jobs (pool, submitted_at);
CREATE INDEX ix_jobs_finished_at ON jobs (finished_at);
CREATE INDEX ix_jobs_state_submitted_at ON jobs (state, submitted_at);
CREATE INDEX ix_allocations_ended_at ON allocations (ended_at);
CREATE INDEX ix_allocations_job_id ON allocations (job_id);
CREATE INDEX ix_allocations_state ON allocations (state);
CREATE INDEX ix_leases_allocation ON leases (allocation);
CREATE INDEX ix_leases_ended_at ON leases (ended_at);
CREATE INDEX ix_leases_job_id_generation ON leases (job_id, generation);
CREATE INDEX ix_events_allocation_seq ON events (allocation, seq);
CREATE INDEX ix_events_at ON events (at);
CREATE INDEX ix_events_kind_seq ON events (kind, seq);
CREATE INDEX ix_events_job_id_seq ON events (job_id, seq);
CREATE INDEX ix_requests_applied_at ON requests (applied_at);
CREATE TRIGGER events_no_update BEFORE UPDATE ON events
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
CREATE TRIGGER events_no_delete BEFORE DELETE ON events WHEN OLD.seq > coalesce((SELECT CAST(value AS BIGINT) FROM meta WHERE key = 'events_horizon'), 0)
BEGIN SELECT RAISE(ABORT, 'events are append-only'); END;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',19);
COMMIT;
